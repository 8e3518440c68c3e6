"""The four sums over pairs of `_torch_pairs`, in Triton.

Each output row has one owner that adds its terms in a fixed order: no atomics, two runs give the
same bits. Sums are kept in fp32 (float64 for float64) and rounded once. Offsets are int64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels._triton_launch import accumulator, on_device_of
from sae_kernels.transpose import Pairs

_BLOCK_PAIRS = 8  # rows in flight: independent loads that hide each other's latency
_BLOCK_WIDTH = 512


@triton.jit
def _sum_rows_kernel(
    out_ptr,
    table_ptr,
    rows_ptr,
    slots_ptr,
    weights_ptr,
    starts_ptr,
    width,
    BY_SLOT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[i] = sum over p in starts[i] : starts[i + 1] of weights[slots[p]] * table[rows[p]].

    One program per (i, block of columns). Without BY_SLOT slots[p] is p.
    """
    i = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < width
    first = tl.load(starts_ptr + i)
    last = tl.load(starts_ptr + i + 1)
    b_acc = tl.zeros((BLOCK_D,), ACC)
    for p in range(first, last, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < last
        b_row = tl.load(rows_ptr + o_p, mask=m_p, other=0)
        b_slot = tl.load(slots_ptr + o_p, mask=m_p, other=0) if BY_SLOT else o_p
        b_weight = tl.load(weights_ptr + b_slot, mask=m_p, other=0.0).to(ACC)
        m_pd = m_p[:, None] & m_d[None, :]
        b_table = tl.load(table_ptr + b_row[:, None] * width + o_d[None, :], mask=m_pd, other=0.0)
        b_acc += tl.sum(b_weight[:, None] * b_table.to(ACC), axis=0)
    tl.store(out_ptr + i * width + o_d, b_acc.to(out_ptr.dtype.element_ty), mask=m_d)


@triton.jit
def _sum_weights_kernel(
    out_ptr, slots_ptr, weights_ptr, starts_ptr, ACC: tl.constexpr, BLOCK_P: tl.constexpr
):
    """out[j] = sum over p in starts[j] : starts[j + 1] of weights[slots[p]]. One program a row."""
    j = tl.program_id(0).to(tl.int64)
    first = tl.load(starts_ptr + j)
    last = tl.load(starts_ptr + j + 1)
    b_acc = tl.zeros((BLOCK_P,), ACC)
    for p in range(first, last, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < last
        b_slot = tl.load(slots_ptr + o_p, mask=m_p, other=0)
        b_acc += tl.load(weights_ptr + b_slot, mask=m_p, other=0.0).to(ACC)
    tl.store(out_ptr + j, tl.sum(b_acc, axis=0))


@triton.jit
def _dot_rows_kernel(
    out_ptr,
    left_ptr,
    table_ptr,
    latents_ptr,
    starts_ptr,
    width,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[p] = <left[i], table[latents[p]]> for p in starts[i] : starts[i + 1]; program i."""
    i = tl.program_id(0).to(tl.int64)
    first = tl.load(starts_ptr + i)
    last = tl.load(starts_ptr + i + 1)
    for p in range(first, last, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < last
        b_latent = tl.load(latents_ptr + o_p, mask=m_p, other=0)
        b_acc = tl.zeros((BLOCK_P,), ACC)
        for d in range(0, width, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)
            m_d = o_d < width
            b_left = tl.load(left_ptr + i * width + o_d, mask=m_d, other=0.0).to(ACC)
            b_table = tl.load(
                table_ptr + b_latent[:, None] * width + o_d[None, :],
                mask=m_p[:, None] & m_d[None, :],
                other=0.0,
            )
            b_acc += tl.sum(b_left[None, :] * b_table.to(ACC), axis=1)
        tl.store(out_ptr + o_p, b_acc.to(out_ptr.dtype.element_ty), mask=m_p)


def _block_width(width: int) -> int:
    return min(triton.next_power_of_2(width), _BLOCK_WIDTH)


def _sum_rows(rows: Tensor, slots: Tensor | None, starts: Tensor, weights: Tensor, table: Tensor):
    table = table.contiguous()
    count, width = starts.shape[0] - 1, table.shape[1]
    out = torch.empty(count, width, dtype=table.dtype, device=table.device)
    block = _block_width(width)
    with on_device_of(table):
        _sum_rows_kernel[(count, triton.cdiv(width, block))](
            out_ptr=out,
            table_ptr=table,
            rows_ptr=rows,
            slots_ptr=rows if slots is None else slots,
            weights_ptr=weights.contiguous(),
            starts_ptr=starts,
            width=width,
            BY_SLOT=slots is not None,
            ACC=accumulator(table.dtype),
            BLOCK_P=_BLOCK_PAIRS,
            BLOCK_D=block,
        )
    return out


def sum_latents(pairs: Pairs, weights: Tensor, table: Tensor) -> Tensor:
    """[batch, d]: for each token, the sum over its latents of weight * table[latent]."""
    return _sum_rows(pairs.indices.contiguous(), None, pairs.row_starts, weights, table)


def sum_tokens(pairs: Pairs, weights: Tensor, table: Tensor) -> Tensor:
    """[d_sae, d]: for each latent, the sum over its tokens of weight * table[token]."""
    return _sum_rows(pairs.tokens, pairs.slots, pairs.latent_starts, weights, table)


def sum_weights(pairs: Pairs, weights: Tensor) -> Tensor:
    """[d_sae]: for each latent, the sum of its weights, in the accumulator's dtype."""
    wide = torch.promote_types(weights.dtype, torch.float32)
    out = torch.empty(pairs.d_sae, dtype=wide, device=weights.device)
    with on_device_of(weights):
        _sum_weights_kernel[(pairs.d_sae,)](
            out_ptr=out,
            slots_ptr=pairs.slots,
            weights_ptr=weights.contiguous(),
            starts_ptr=pairs.latent_starts,
            ACC=accumulator(weights.dtype),
            BLOCK_P=128,
        )
    return out


def dot_rows(pairs: Pairs, left: Tensor, table: Tensor) -> Tensor:
    """[nnz]: for each pair, <left[token], table[latent]>."""
    left, table = left.contiguous(), table.contiguous()
    out = torch.empty(pairs.indices.numel(), dtype=table.dtype, device=table.device)
    with on_device_of(table):
        _dot_rows_kernel[(pairs.batch,)](
            out_ptr=out,
            left_ptr=left,
            table_ptr=table,
            latents_ptr=pairs.indices.contiguous(),
            starts_ptr=pairs.row_starts,
            width=left.shape[1],
            ACC=accumulator(table.dtype),
            BLOCK_P=_BLOCK_PAIRS,
            BLOCK_D=_block_width(left.shape[1]),
        )
    return out
