"""`sae_kernels.adam` on CPU, a chunk of rows at a time so that the passes over it stay in cache."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sae_kernels.cpu.row_grads import chunk_rows, gradient_chunks
from sae_kernels.row_grads import RowGrads

_NOISE_ELEMENTS = 2**21


def _fused(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, count: Tensor, hyper: dict
) -> None:
    torch._fused_adam_(
        [param], [grad], [exp_avg], [exp_avg_sq], [], [count], weight_decay=0.0, amsgrad=False,
        maximize=False, **hyper,
    )  # fmt: skip


def _without_parallel_part(grad: Tensor, rows: Tensor, free: Tensor) -> Tensor:
    """Each row of `grad` less its component along the same row of `rows`; written to `free`."""
    along = torch.mul(rows, grad, out=free).sum(1, keepdim=True)
    along /= _lengths(rows).square_().clamp_min_(_tiny(rows))
    return torch.addcmul(grad, rows, along, value=-1, out=free)


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(_tiny(rows))


def _tiny(rows: Tensor) -> float:
    """What zero is divided by, so that a row of zeros stays zero."""
    return torch.finfo(rows.dtype).tiny


@cache
def _noise() -> Tensor:
    """Uniform below 2^16. Drawing afresh would take longer than the whole update; int32, since
    adding int16 to it takes seven times as long."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2**16, (_NOISE_ELEMENTS,), dtype=torch.int32, generator=generator)


class StochasticRounding:
    """fp32 to bf16, up or down with the probability that makes the mean right.

    The 16 bits that are cut off are added to 16 random ones; what carries rounds up. A table of
    noise is read from a place that is drawn for every call, so each element meets other noise at
    each step, and the same (seed, step) gives the same bits.
    """

    def __init__(self, seed: int, step: int) -> None:
        self.table = _noise()
        self.places = torch.Generator().manual_seed(seed * 1_000_003 + step)

    def __call__(self, wide: Tensor, out: Tensor) -> None:
        """`wide`, fp32 and contiguous, into `out`, bf16; `wide` is used up."""
        count = wide.numel()
        if count > len(self.table):  # one row wider than the table
            noise = self.table.repeat(-(-count // len(self.table)))[:count]
        else:
            places = len(self.table) - count + 1
            first = torch.randint(places, (1,), generator=self.places).item()
            noise = self.table[first : first + count]
        bits = wide.view(torch.int32)
        bits.add_(noise.view(bits.shape)).bitwise_right_shift_(16)
        out.view(torch.int16).copy_(bits)


def adam_rows(
    param: Tensor,
    grad: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    parts: RowGrads | None,
    scale: Tensor | None,
    master: Tensor | None,
    step: int,
    seed: int,
    unit_norm: bool,
    lazy: bool,
    **hyper: float,
) -> None:
    """In place on contiguous [rows, width] tensors."""
    rows = param if master is None else master
    wide = torch.promote_types(rows.dtype, torch.float32)
    count = torch.tensor(float(step))
    by = None if scale is None else scale.item()
    rounding = StochasticRounding(seed, step) if exp_avg.dtype != rows.dtype else None
    touched = _touched(parts, len(rows)) if lazy else None
    width = rows.shape[1]
    scratch = rows.new_empty(min(chunk_rows(width), len(rows)), width) if unit_norm else None

    for chunk, g, free in gradient_chunks(rows.shape, grad, parts):
        at: slice | Tensor = chunk
        if touched is not None:
            at = touched[chunk].nonzero().squeeze(1)
            g, free = g[at], True
            at = at + chunk.start
        p, m, v = rows[at], exp_avg[at], exp_avg_sq[at]
        g = g.to(rows.dtype)
        if by is not None:
            g = g.mul_(by) if free else g * by
        if unit_norm:
            g = _without_parallel_part(g, p, scratch[: len(p)])
        mean, square = m.to(wide) if rounding else m, v.to(wide) if rounding else v
        _fused(p, g, mean, square, count, hyper)
        if unit_norm:
            p /= _lengths(p)
        if rounding:
            rounding(mean, m)
            rounding(square, v)
        if touched is not None:
            rows[at], exp_avg[at], exp_avg_sq[at] = p, m, v
        if master is not None:
            param[at] = p.to(param.dtype)


def _touched(parts: RowGrads | None, count: int) -> Tensor:
    """[count] bool: which rows a part of the gradient belongs to."""
    touched = torch.zeros(count, dtype=torch.bool)
    for pairs, _, _ in parts.pair_parts if parts else ():
        touched |= pairs.latent_starts.diff() > 0
    for latents, _ in parts.row_parts if parts else ():
        touched[latents] = True
    return touched
