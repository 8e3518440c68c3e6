"""The four sums over pairs (`backend.PairSums`) in Triton.

Each number has one owner that adds its terms in a fixed order: there are no atomics, and two runs
give the same bits. Sums are kept in fp32 (float64 for float64) and rounded once. Offsets are int64.
Long lists of one latent are cut, see `gpu.row_grads`.
"""

# Triton's annotations describe code inside a kernel: a launch takes plain values for constexpr.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.gpu import row_grads as gpu_row_grads
from sae_kernels.gpu.launch import accumulator, on_device_of
from sae_kernels.gpu.row_grads import (
    add_rows,
    block_pairs,
    block_width,
    latent_row,
    pair_part,
    piece_range,
    uncut_range,
)
from sae_kernels.pairs import Pairs

# A latent on each of 8,192 tokens takes 16 rounds, which is too few to cut its list.
_BLOCK_WEIGHTS = 512


@triton.jit
def _sum_rows_kernel(
    out_ptr,
    table_ptr,
    rows_ptr,
    weights_ptr,
    starts_ptr,
    width,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store the weighted sum of one token's rows. Program (i, block of columns).

    out[i] = sum over p in starts[i] : starts[i + 1] of weights[p] * table[rows[p]].
    """
    i = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < width
    first = tl.load(starts_ptr + i)
    last = tl.load(starts_ptr + i + 1)
    b_acc = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    b_acc = add_rows(
        b_acc, first, last, table_ptr, rows_ptr, None, weights_ptr, width, o_d, m_d, BLOCK_P
    )
    b_out = tl.sum(b_acc, axis=0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + i * width + o_d, b_out, mask=m_d)


@triton.jit
def _sum_tokens_kernel(
    out_ptr,
    part,
    width,
    ACC: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store `latent_row` in out[j]. Program (latent, block of columns)."""
    j = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < width
    b_acc = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    b_acc = latent_row(part, j, width, o_d, m_d, b_acc, PIECE, BLOCK_P)
    b_out = tl.sum(b_acc, axis=0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + j * width + o_d, b_out, mask=m_d)


@triton.jit
def _sum_weights_kernel(
    out_ptr, slots_ptr, weights_ptr, starts_ptr, ACC: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Store in out[j] the sum of weights[slots[p]] over starts[j] : starts[j + 1]. Program j."""
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
    tokens_ptr,
    slots_ptr,
    starts_ptr,
    indices_ptr,
    width,
    d_sae,
    ACC: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store <left[tokens[p]], table[j]> in out[slots[p]] for the pairs p of latent j.

    Program i < d_sae has the list of latent i, unless it is cut; the others have one piece each.
    """
    i = tl.program_id(0).to(tl.int64)
    if i < d_sae:
        j = i
        first, last = uncut_range(j, starts_ptr, PIECE)
    else:
        j, first, last = piece_range(i - d_sae, indices_ptr, slots_ptr, starts_ptr, PIECE)
    for p in range(first, last, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < last
        b_token = tl.load(tokens_ptr + o_p, mask=m_p, other=0)
        b_acc = tl.zeros((BLOCK_P, BLOCK_D), ACC)
        for d in range(0, width, BLOCK_D):
            o_d = d + tl.arange(0, BLOCK_D)
            m_d = o_d < width
            m_pd = m_p[:, None] & m_d[None, :]
            o_pd = b_token[:, None] * width + o_d[None, :]
            b_left = tl.load(left_ptr + o_pd, mask=m_pd, other=0.0).to(ACC)
            b_table = tl.load(table_ptr + j * width + o_d, mask=m_d, other=0.0).to(ACC)
            b_acc += b_left * b_table[None, :]
        b_slot = tl.load(slots_ptr + o_p, mask=m_p, other=0)
        b_out = tl.sum(b_acc, axis=1).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + b_slot, b_out, mask=m_p)


def sum_latents(pairs: Pairs, weights: Tensor, table: Tensor) -> Tensor:
    """Return, for each token, the sum over its latents of weight * table[latent]: [batch, d]."""
    table, width = table.contiguous(), table.shape[1]
    block = block_width(width)
    out = torch.empty(pairs.batch, width, dtype=table.dtype, device=table.device)
    with on_device_of(table):
        _sum_rows_kernel[(pairs.batch, triton.cdiv(width, block))](
            out_ptr=out,
            table_ptr=table,
            rows_ptr=pairs.indices.contiguous(),
            weights_ptr=weights.contiguous(),
            starts_ptr=pairs.row_starts,
            width=width,
            ACC=accumulator(table.dtype),
            BLOCK_P=block_pairs(block, table.element_size()),
            BLOCK_D=block,
        )
    return out


def sum_tokens(pairs: Pairs, weights: Tensor, table: Tensor) -> Tensor:
    """Return, for each latent, the sum over its tokens of weight * table[token]: [d_sae, d]."""
    width = table.shape[1]
    block = block_width(width)
    out = torch.empty(pairs.d_sae, width, dtype=table.dtype, device=table.device)
    with on_device_of(table):
        _sum_tokens_kernel[(pairs.d_sae, triton.cdiv(width, block))](
            out_ptr=out,
            part=pair_part(pairs, weights, table),
            width=width,
            ACC=accumulator(table.dtype),
            PIECE=gpu_row_grads.PIECE,
            BLOCK_P=block_pairs(block, table.element_size()),
            BLOCK_D=block,
        )
    return out


def sum_weights(pairs: Pairs, weights: Tensor) -> Tensor:
    """Return the sum of the weights of each latent: [d_sae], in the dtype that sums are kept in."""
    acc_dtype = torch.promote_types(weights.dtype, torch.float32)
    out = torch.empty(pairs.d_sae, dtype=acc_dtype, device=weights.device)
    with on_device_of(weights):
        _sum_weights_kernel[(pairs.d_sae,)](
            out_ptr=out,
            slots_ptr=pairs.slots,
            weights_ptr=weights.contiguous(),
            starts_ptr=pairs.latent_starts,
            ACC=accumulator(weights.dtype),
            BLOCK_P=_BLOCK_WEIGHTS,
        )
    return out


def dot_rows(pairs: Pairs, left: Tensor, table: Tensor) -> Tensor:
    """Return <left[token], table[latent]> for each pair: [nnz]; 0 for padding.

    It goes latent by latent, because the batch is the smaller table. At (d, d_sae, k, batch) =
    (2304, 65536, 64, 8192) in bf16 both orders gather 2.4 GB. By token they come from the 302 MB of
    W_dec, of which a cache of 60 MB holds a fifth (2.0 GB from memory). By latent they come from
    the 38 MB of g, which the cache holds (0.34 GB from memory, including one pass over W_dec). This
    is an estimate, not a measurement.
    """
    left, table, width = left.contiguous(), table.contiguous(), left.shape[1]
    block, piece = block_width(width), gpu_row_grads.PIECE
    allocate = torch.empty if pairs.offsets is None else torch.zeros
    out = allocate(pairs.slots.numel(), dtype=table.dtype, device=table.device)
    with on_device_of(table):
        _dot_rows_kernel[(pairs.d_sae + 2 * pairs.slots.numel() // piece,)](
            out_ptr=out,
            left_ptr=left,
            table_ptr=table,
            tokens_ptr=pairs.tokens,
            slots_ptr=pairs.slots,
            starts_ptr=pairs.latent_starts,
            indices_ptr=pairs.indices.contiguous(),
            width=width,
            d_sae=pairs.d_sae,
            ACC=accumulator(table.dtype),
            PIECE=piece,
            BLOCK_P=block_pairs(block, left.element_size()),
            BLOCK_D=block,
        )
    return out
