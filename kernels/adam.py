"""One Adam step on one parameter, in place, with a unit-norm constraint on its rows where asked
for.

Adam is torch.optim.Adam's: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps). With unit_norm the part of g along
each row of p is taken out first and the rows are scaled back to length 1 last. bf16 is computed in
fp32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels import reference
from sae_kernels._backend import resolve

# 4 MB of fp32 of each tensor: the passes over a chunk stay in cache. Smaller chunks are no faster,
# and every pass is a parallel region, which costs a scheduler's slice where cores are shared.
_CHUNK_ELEMENTS = 2**20


def _fused(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, hyper: dict
) -> None:
    torch._fused_adam_(
        [param], [grad], [exp_avg], [exp_avg_sq], [], [step], weight_decay=0.0, amsgrad=False,
        maximize=False, **hyper,
    )  # fmt: skip


def _unit_norm_torch(param, grad, exp_avg, exp_avg_sq, step: Tensor, hyper: dict) -> None:
    rows = max(_CHUNK_ELEMENTS // param.shape[1], 1)
    scratch = torch.empty_like(param[:rows])
    tiny = torch.finfo(param.dtype).tiny
    for start in range(0, param.shape[0], rows):
        chunk = slice(start, start + rows)
        p, g = param[chunk], grad[chunk]
        free = scratch[: len(p)]
        along = torch.mul(p, g, out=free).sum(1, keepdim=True)
        along /= torch.linalg.vector_norm(p, dim=1, keepdim=True).square_().clamp_min_(tiny)
        torch.addcmul(g, p, along, value=-1, out=free)
        _fused(p, free, exp_avg[chunk], exp_avg_sq[chunk], step, hyper)
        p /= torch.linalg.vector_norm(p, dim=1, keepdim=True).clamp_min_(tiny)


@torch.no_grad()
def adam_rows_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool = False,
    backend: str = "auto",
) -> None:
    """Update param, exp_avg and exp_avg_sq in place; grad is left as it is.

    param: 1-D, or 2-D contiguous (W_dec) or latent-major (W_enc); exp_avg and exp_avg_sq
    (torch.zeros_like(param) at the start) have its layout; grad is copied if it has another. step
    counts from 1. unit_norm: rows of a contiguous [d_sae, d_in] param keep length 1; a row of zeros
    stays zero. backend: as in `decode`. Raises ValueError for an unknown backend, a layout that is
    neither, and unit_norm without contiguous rows.
    """
    backend = resolve(backend, param)
    if unit_norm and not (param.ndim == 2 and param.is_contiguous()):
        raise ValueError("unit_norm=True needs a contiguous [d_sae, d_in] parameter")
    if exp_avg.stride() != param.stride() or exp_avg_sq.stride() != param.stride():
        raise ValueError(
            f"moments must have the parameter's layout {param.stride()}, "
            f"got {exp_avg.stride()} and {exp_avg_sq.stride()}"
        )
    hyper = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    if backend == "reference":
        reference.adam_rows_(
            param, grad, exp_avg, exp_avg_sq, step=step, unit_norm=unit_norm, **hyper
        )
        return
    if not param.is_contiguous():
        param, grad, exp_avg, exp_avg_sq = (t.t() for t in (param, grad, exp_avg, exp_avg_sq))
        if not param.is_contiguous():
            raise ValueError("a parameter must be contiguous, or its transpose must be")
    grad = grad.contiguous()
    if backend == "triton":
        from sae_kernels._triton_adam import adam_rows

        adam_rows(param, grad, exp_avg, exp_avg_sq, step=step, unit_norm=unit_norm, **hyper)
    else:
        update = _unit_norm_torch if unit_norm else _fused
        count = torch.tensor(float(step), device=param.device)
        update(param, grad, exp_avg, exp_avg_sq, count, hyper)
    # Neither a kernel's writes nor a fused step's are seen by autograd: without this, a backward
    # through the old values would pass silently.
    torch.autograd.graph.increment_version((param, exp_avg, exp_avg_sq))
