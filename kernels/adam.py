"""One Adam step on one parameter, in place, with an optional unit-norm constraint on its rows.

With g the gradient, dense or in parts (`row_grads`), in this order:
    g *= scale                                         (clipping; a scalar on the device)
    g -= <g, p> / <p, p> p,  row by row                (unit_norm: remove the part along the row)
    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
    p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)      (torch.optim.Adam's rule)
    p /= |p|,  row by row                              (unit_norm)
Arithmetic is fp32 for narrower tensors (float64 for float64), rounded once. `master` keeps what
rounding to a bf16 parameter would lose. Moments may be bf16; they are rounded stochastically,
because with rounding to nearest exp_avg_sq would not move (beta2 = 0.999 moves it by less than half
of bf16's last place). Two runs give the same bits.

lazy: rows that no part of the gradient touches in this step stay unchanged, moments included
(torch.optim.SparseAdam's rule). This is another algorithm: dense Adam lets such rows drift on. It
saves memory traffic only if few rows are touched: from d_sae = 512k, and only for W_dec, because
every step reads all of W_enc anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from sae_kernels import reference
from sae_kernels.backend import resolve
from sae_kernels.deterministic_sum import sum_of_squares
from sae_kernels.row_grads import RowGrads


class _Options(TypedDict):
    """The keyword arguments that the three implementations share."""

    parts: RowGrads | None
    scale: Tensor | None
    master: Tensor | None
    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    seed: int
    unit_norm: bool
    lazy: bool


def _is_latent_major(param: Tensor) -> bool:
    """Return whether only the transpose of `param` is contiguous: one row per latent."""
    if param.is_contiguous():
        return False
    if not (param.ndim == 2 and param.t().is_contiguous()):
        raise ValueError("a parameter must be contiguous, or its transpose must be")
    return True


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
    """Update param, exp_avg, exp_avg_sq and master in place; the gradients are not changed.

    Args:
        param: 1-D, 2-D contiguous (W_dec), or 2-D latent-major (W_enc).
        grad: The gradient, shaped like param, or None if row_grads has all of it. It is copied if
            its layout differs.
        exp_avg, exp_avg_sq: The moments, zeros before step 1, in param's layout, and in its dtype
            or bf16.
        step: The number of this step, from 1.
        lr, beta1, beta2, eps: As in torch.optim.Adam.
        unit_norm: Keep the rows of a contiguous [d_sae, d_in] param at length 1. A row of zeros
            stays zero.
        row_grads: The gradient in parts; added to grad if both are given.
        scale: A 0-d tensor that multiplies the gradient, or None.
        master: An fp32 copy of param in its layout. It is updated instead, and param becomes its
            rounded copy.
        seed: The seed for the stochastic rounding of bf16 moments.
        lazy: Leave rows that row_grads does not touch unchanged; see the module's docstring.
        hyper: `hyper_values` in a float64 tensor on the device. The triton backend reads it instead
            of step, lr, betas and eps, so that a recorded CUDA graph can run further steps.
        backend: As in `decode`.

    Raises:
        ValueError: The backend is unknown, there is no gradient, or a layout is not supported.
    """
    backend = resolve(backend, param)
    if unit_norm and not (param.ndim == 2 and param.is_contiguous()):
        raise ValueError("unit_norm=True needs a contiguous [d_sae, d_in] parameter")
    if lazy and not row_grads:
        raise ValueError("lazy=True needs a gradient in parts (row_grads), which lists the rows")
    if grad is None and not row_grads:
        raise ValueError("no gradient: give grad, row_grads, or both")
    for name, like in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("master", master)):
        if like is not None and like.stride() != param.stride():
            raise ValueError(
                f"{name} must have the parameter's layout {param.stride()}, got {like.stride()}"
            )
    view: Callable[[Tensor], Tensor] = lambda t: t
    if _is_latent_major(param):
        view = Tensor.t
    elif param.ndim != 2:
        view = lambda t: t.reshape(1, -1)
    grad_rows = None if grad is None else view(grad).contiguous()
    master_rows = None if master is None else view(master)
    tensors = view(param), grad_rows, view(exp_avg), view(exp_avg_sq)
    options = _Options(
        parts=row_grads,
        scale=scale,
        master=master_rows,
        step=step,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        seed=seed,
        unit_norm=unit_norm,
        lazy=lazy,
    )
    if backend == "triton":
        from sae_kernels.gpu.adam import adam_rows

        adam_rows(*tensors, hyper=hyper, **options)
    elif backend == "reference":
        reference.adam_rows(*tensors, **options)
    else:
        from sae_kernels.cpu.adam import adam_rows

        adam_rows(*tensors, **options)
    # Autograd does not see the writes of a kernel or a fused step. Without this, a backward pass
    # through the old values would give wrong gradients silently.
    changed = (param, exp_avg, exp_avg_sq, *(() if master is None else (master,)))
    torch.autograd.graph.increment_version(changed)


@torch.no_grad()
def square_norm(
    param: Tensor, grad: Tensor | None, row_grads: RowGrads | None = None, *, backend: str = "auto"
) -> Tensor:
    """Return the squared norm of the gradient of `param`, 0-d, fp32 or wider.

    Summed over the parameters, it is the square of the global gradient norm. The rows of a gradient
    in parts are computed and dropped. Arguments are as in `adam_rows_`.
    """
    backend = resolve(backend, param)
    if not row_grads:
        assert grad is not None, "no gradient: give grad, row_grads, or both"
        return sum_of_squares(grad).to(torch.promote_types(grad.dtype, torch.float32))
    if _is_latent_major(param):
        param, grad = param.t(), grad if grad is None else grad.t()
    if backend == "triton":
        from sae_kernels.gpu import row_grads as gpu_row_grads

        return gpu_row_grads.square_norm(param, grad, row_grads)
    from sae_kernels.cpu import row_grads as cpu_row_grads

    return cpu_row_grads.square_norm(param.shape, grad, row_grads)
