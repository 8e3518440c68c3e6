"""One Adam step on one parameter, in place, with a unit-norm constraint on its rows where asked
for.

With g the gradient, whole or in parts (`row_grads`), in this order:
    g *= scale                                         (clipping; a scalar on the device)
    g -= <g, p> / <p, p> p,  row by row                (unit_norm: the part along the row)
    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
    p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)      (torch.optim.Adam's rule)
    p /= |p|,  row by row                              (unit_norm)
Arithmetic is fp32 for narrower tensors (float64 for float64), rounded once. `master` keeps what
rounding to a bf16 parameter would lose. Moments may be bf16: they are rounded stochastically, since
to nearest exp_avg_sq would stand still (beta2 = 0.999 moves it by less than half of bf16's last
place); two runs give the same bits.

lazy: rows that no part of the gradient touches in this step are left as they are, moments
included (torch.optim.SparseAdam's rule). That is another algorithm: dense Adam lets them drift on.
It saves traffic only where few rows are touched: at d_sae of 512k and more, and for W_dec alone,
for W_enc is read whole at every step anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.backend import resolve
from sae_kernels.deterministic_sum import square_norm_of
from sae_kernels.row_grads import RowGrads


def _as_rows(param: Tensor) -> bool:
    """Whether `param` is latent-major, so that its transpose is what lies in rows."""
    if param.is_contiguous():
        return False
    if not (param.ndim == 2 and param.t().is_contiguous()):
        raise ValueError("a parameter must be contiguous, or its transpose must be")
    return True


def hyper_values(
    step: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[float, float, float, float, float, float]:
    """What a step knows, with the powers taken: lr / (1 - beta1^t), sqrt(1 - beta2^t), beta1,
    beta2, eps, t."""
    return lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, beta1, beta2, eps, float(step)


@torch.no_grad()
def adam_rows_(
    param: Tensor,
    grad: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool = False,
    row_grads: RowGrads | None = None,
    scale: Tensor | None = None,
    master: Tensor | None = None,
    seed: int = 0,
    lazy: bool = False,
    hyper: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Update param, exp_avg and exp_avg_sq (and master) in place; gradients are left as they are.

    param: 1-D, or 2-D contiguous (W_dec) or latent-major (W_enc); exp_avg and exp_avg_sq (zeros at
    the start) have its layout, and its dtype or bf16. grad: like param, copied if its layout is
    another; None when row_grads has all of it. step counts from 1. unit_norm: rows of a contiguous
    [d_sae, d_in] param keep length 1; a row of zeros stays zero. scale: 0-d. master: like param, in
    fp32; it is what is updated, and param is its rounded copy. seed: of the rounding of bf16
    moments. hyper: `hyper_values` in a float64 tensor on the device, read in place of step, lr,
    betas and eps by the triton backend, so that a recorded CUDA graph can go on to the next step.
    backend: as in `decode`.

    Raises ValueError for an unknown backend, a layout that is neither, moments or a master of
    another layout, no gradient at all, and unit_norm without contiguous rows.
    """
    backend = resolve(backend, param)
    if unit_norm and not (param.ndim == 2 and param.is_contiguous()):
        raise ValueError("unit_norm=True needs a contiguous [d_sae, d_in] parameter")
    if lazy and not row_grads:
        raise ValueError("lazy=True needs a gradient in parts (row_grads), to know the rows")
    if grad is None and not row_grads:
        raise ValueError("no gradient: give grad, row_grads, or both")
    for name, like in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("master", master)):
        if like is not None and like.stride() != param.stride():
            raise ValueError(
                f"{name} must have the parameter's layout {param.stride()}, got {like.stride()}"
            )
    numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    state = [param, grad, exp_avg, exp_avg_sq, master]
    if _as_rows(param):
        state = [t if t is None else t.t() for t in state]
    elif param.ndim != 2:
        state = [t if t is None else t.reshape(1, -1) for t in state]
    param_, grad, exp_avg_, exp_avg_sq_, master_ = state
    if backend == "reference":
        from sae_kernels.reference import adam_rows as update
    elif backend == "triton":
        from sae_kernels.gpu.adam import adam_rows as update

        numbers["hyper"] = hyper
    else:
        from sae_kernels.cpu.adam import adam_rows as update
    update(
        param_,
        grad if grad is None else grad.contiguous(),
        exp_avg_,
        exp_avg_sq_,
        parts=row_grads,
        scale=scale,
        master=master_,
        step=step,
        seed=seed,
        unit_norm=unit_norm,
        lazy=lazy,
        **numbers,
    )
    # Neither a kernel's writes nor a fused step's are seen by autograd: without this, a backward
    # through the old values would pass silently.
    changed = (param, exp_avg, exp_avg_sq, *(() if master is None else (master,)))
    torch.autograd.graph.increment_version(changed)


@torch.no_grad()
def square_norm(
    param: Tensor, grad: Tensor | None, row_grads: RowGrads | None = None, *, backend: str = "auto"
) -> Tensor:
    """|gradient of param|^2, 0-d and at least fp32: what a global norm is the root of the sum of.

    Arguments as in `adam_rows_`. Gradients in parts are made row by row, and dropped.
    """
    backend = resolve(backend, param)
    if not row_grads:
        assert grad is not None, "no gradient: give grad, row_grads, or both"
        return square_norm_of(grad).to(torch.promote_types(grad.dtype, torch.float32))
    if _as_rows(param):
        param, grad = param.t(), grad if grad is None else grad.t()
    if backend == "triton":
        from sae_kernels.gpu.row_grads import square_norm as of_rows

        return of_rows(param, grad, row_grads)
    from sae_kernels.cpu.row_grads import square_norm as of_rows

    return of_rows(param.shape, grad, row_grads)
