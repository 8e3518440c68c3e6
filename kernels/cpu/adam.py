"""`sae_kernels.adam` on CPU, a chunk of rows at a time so that all passes over it hit the cache."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sae_kernels.cpu.row_grads import chunk_rows, gradient_chunks
from sae_kernels.row_grads import RowGrads

_NOISE_ELEMENTS = 2**21


def _without_parallel_part(grad: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """Return each row of `grad` minus its component along the same row of `rows`, in `out`."""
    along = torch.mul(rows, grad, out=out).sum(1, keepdim=True)
    along /= _lengths(rows).square_().clamp_min_(_tiny(rows))
    return torch.addcmul(grad, rows, along, value=-1, out=out)


def _lengths(rows: Tensor) -> Tensor:
    """Return the norm of each row, [rows, 1], and the smallest positive number for a zero row."""
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(_tiny(rows))


def _tiny(rows: Tensor) -> float:
    """Return the divisor for rows of zeros, so that they stay zero."""
    return torch.finfo(rows.dtype).tiny


@cache
def _noise() -> Tensor:
    """Return a table of uniform integers below 2^16.

    Drawing new ones for each update would take longer than the update. They are int32, because
    adding int16 to int32 takes seven times as long.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2**16, (_NOISE_ELEMENTS,), dtype=torch.int32, generator=generator)


class StochasticRounding:
    """Round fp32 to bf16, up or down with the probabilities that make the result unbiased.

    The 16 bits that are cut off are added to 16 random bits, and a carry rounds up. The random bits
    come from a table that is read from a random start for every call. So each element gets other
    bits at each step, and the same (seed, step) gives the same result.
    """

    def __init__(self, seed: int, step: int) -> None:
        self.table = _noise()
        self.starts = torch.Generator().manual_seed(seed * 1_000_003 + step)

    def __call__(self, values: Tensor, out: Tensor) -> None:
        """Round `values` (fp32, contiguous) into `out` (bf16); `values` is overwritten."""
        count = values.numel()
        if count > len(self.table):  # one row is longer than the table
            noise = self.table.repeat(-(-count // len(self.table)))[:count]
        else:
            n_starts = len(self.table) - count + 1
            first = int(torch.randint(n_starts, (1,), generator=self.starts))
            noise = self.table[first : first + count]
        bits = values.view(torch.int32)
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
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Take one step in place on contiguous [rows, width] tensors."""
    rows = param if master is None else master
    acc_dtype = torch.promote_types(rows.dtype, torch.float32)
    count = torch.tensor(float(step))
    factor = None if scale is None else scale.item()
    rounding = StochasticRounding(seed, step) if exp_avg.dtype != rows.dtype else None
    touched = _touched(parts, len(rows)) if lazy else None
    width = rows.shape[1]
    scratch = rows.new_empty(min(chunk_rows(width), len(rows)), width) if unit_norm else None

    for chunk, g, writable in gradient_chunks(rows.shape, grad, parts):
        index: slice | Tensor = chunk
        if touched is not None:
            in_chunk = touched[chunk].nonzero().squeeze(1)
            g, writable = g[in_chunk], True
            index = in_chunk + chunk.start
        p, m, v = rows[index], exp_avg[index], exp_avg_sq[index]
        g = g.to(rows.dtype)
        if factor is not None:
            g = g.mul_(factor) if writable else g * factor
        if scratch is not None:
            g = _without_parallel_part(g, p, scratch[: len(p)])
        mean, square = m.to(acc_dtype) if rounding else m, v.to(acc_dtype) if rounding else v
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            [p], [g], [mean], [square], [], [count], lr=lr, beta1=beta1, beta2=beta2, eps=eps,
            weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip
        if unit_norm:
            p /= _lengths(p)
        if rounding:
            rounding(mean, m)
            rounding(square, v)
        if touched is not None:
            rows[index], exp_avg[index], exp_avg_sq[index] = p, m, v
        if master is not None:
            param[index] = p.to(param.dtype)


def _touched(parts: RowGrads | None, count: int) -> Tensor:
    """Return which rows some part of the gradient touches, bool [count]."""
    touched = torch.zeros(count, dtype=torch.bool)
    for pairs, _, _ in parts.pair_parts if parts else ():
        touched |= pairs.latent_starts.diff() > 0
    for latents, _ in parts.row_parts if parts else ():
        touched[latents] = True
    return touched
