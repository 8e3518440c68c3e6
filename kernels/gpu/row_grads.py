"""Gradient rows of a matrix with one row per latent, summed in registers from parts, in Triton.

Row j of the gradient [d_sae, d], in fp32 (float64 for float64):
    dense[j] + sum over pair parts, over the pairs p of latent j, of weights[slot_p] *
    table[token_p] + sum over row parts of rows[position of j].
Terms are added in a fixed order by one owner: there are no atomics, and two runs give the same
bits. Offsets are int64. `gpu.adam` consumes the rows; this module computes their squared norm. No
[d_sae, d] is written.

A latent that fires on a third of 8,192 tokens has 2,700 pairs. One program would process them alone
while the device idles. So a list start : end of n > PIECE pairs is cut into pieces of PIECE: a
first pass sums each piece into a row of scratch, and the program that needs the row of the latent
adds these in order. Piece i has the number 2 start // PIECE + i, which needs no counting and no
answer from the device. With m PIECE < n <= (m + 1) PIECE, m >= 1:
    2 end // PIECE - 2 start // PIECE >= 2 m >= m + 1, so the numbers of two lists never overlap,
    and all are below 2 nnz // PIECE, the number of programs launched;
    pair (number + 1) PIECE / 2 - 1 lies in start : end, and a program finds its latent there.
"""

# Triton's annotations describe code inside a kernel: a launch takes plain values for constexpr.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.gpu.launch import accumulator, on_device_of
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import RowGrads

PIECE = 128  # even
BLOCK_WIDTH = 512


@triton.jit
def piece_range(number, indices, slots, starts, PIECE: tl.constexpr):
    """Return (latent, first, last) of piece `number`; first >= last if there is no such piece."""
    slot = tl.load(slots + (number + 1) * PIECE // 2 - 1)
    j = tl.load(indices + slot)  # any latent for padding: first is then behind the end
    start = tl.load(starts + j)
    end = tl.load(starts + j + 1)
    first = start + (number - 2 * start // PIECE) * PIECE
    return j, first, tl.where(end - start > PIECE, tl.minimum(first + PIECE, end), first)


@triton.jit
def uncut_range(j, starts, PIECE: tl.constexpr):
    """Return (first, last) of the pairs of latent j; an empty range if its list is cut."""
    first = tl.load(starts + j)
    last = tl.load(starts + j + 1)
    return first, tl.where(last - first > PIECE, first, last)


@triton.jit
def add_rows(b_acc, first, last, table, rows, slots, weights, width, o_d, m_d, BLOCK_P):
    """Return b_acc [BLOCK_P, BLOCK_D] plus weights[slots[p]] * table[rows[p]], p in first : last.

    Line i of b_acc gets p = first + i, first + i + BLOCK_P, ... Without rows, rows[p] is p; without
    slots, slots[p] is p; without weights, they are 1. The caller adds up the lines: in this loop
    that would go through shared memory.
    """
    for p in range(first, last, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P).to(tl.int64)
        m_p = o_p < last
        b_row = o_p if rows is None else tl.load(rows + o_p, mask=m_p, other=0)
        m_pd = m_p[:, None] & m_d[None, :]
        b_x = tl.load(table + b_row[:, None] * width + o_d[None, :], mask=m_pd, other=0.0)
        b_x = b_x.to(b_acc.dtype)
        if weights is None:
            b_acc += b_x
        else:
            b_slot = o_p if slots is None else tl.load(slots + o_p, mask=m_p, other=0)
            b_weight = tl.load(weights + b_slot, mask=m_p, other=0.0).to(b_acc.dtype)
            b_acc += b_weight[:, None] * b_x
    return b_acc


@triton.jit
def latent_row(part, j, width, o_d, m_d, b_acc, PIECE: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return b_acc [BLOCK_P, BLOCK_D] plus row j of the gradient in one `pair_part`."""
    table, tokens, slots, weights, starts, partials = part
    first, last = uncut_range(j, starts, PIECE)
    b_acc = add_rows(b_acc, first, last, table, tokens, slots, weights, width, o_d, m_d, BLOCK_P)
    count = tl.load(starts + j + 1) - first
    piece = 2 * first // PIECE
    end = piece + tl.where(count > PIECE, (count + PIECE - 1) // PIECE, 0)
    return add_rows(b_acc, piece, end, partials, None, None, None, width, o_d, m_d, BLOCK_P)


@triton.jit
def gradient_row(
    dense,
    pair_parts,
    row_parts,
    j,
    width,
    o_d,
    m_d,
    ACC: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return row j of the gradient, [BLOCK_D]. dense may be None, and both tuples may be empty."""
    b_acc = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    for n in tl.static_range(len(pair_parts)):
        b_acc = latent_row(pair_parts[n], j, width, o_d, m_d, b_acc, PIECE, BLOCK_P)
    b_grad = tl.sum(b_acc, axis=0)
    for n in tl.static_range(len(row_parts)):
        positions, rows = row_parts[n]
        row = tl.load(positions + j).to(tl.int64)
        m_row = m_d & (o_d < tl.where(row >= 0, width, 0))
        b_grad += tl.load(rows + row * width + o_d, mask=m_row, other=0.0).to(ACC)
    if dense is not None:
        b_grad += tl.load(dense + j * width + o_d, mask=m_d, other=0.0).to(ACC)
    return b_grad


@triton.jit
def _sum_pieces_kernel(
    partials_ptr,
    table_ptr,
    tokens_ptr,
    slots_ptr,
    weights_ptr,
    starts_ptr,
    indices_ptr,
    width,
    ACC: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store the sum over one piece in partials[number]. Program (number, block of columns)."""
    number = tl.program_id(0).to(tl.int64)
    _, first, last = piece_range(number, indices_ptr, slots_ptr, starts_ptr, PIECE)
    if first >= last:
        return
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < width
    b_acc = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    b_acc = add_rows(
        b_acc, first, last, table_ptr, tokens_ptr, slots_ptr, weights_ptr, width, o_d, m_d, BLOCK_P
    )
    tl.store(partials_ptr + number * width + o_d, tl.sum(b_acc, axis=0), mask=m_d)


@triton.jit
def _square_norm_kernel(
    out_ptr,
    dense_ptr,
    pair_parts,
    row_parts,
    width,
    ACC: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store in out[j, block] the sum of squares of one block of row j of the gradient."""
    j = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b_grad = gradient_row(
        dense_ptr, pair_parts, row_parts, j, width, o_d, o_d < width, ACC, PIECE, BLOCK_P, BLOCK_D
    )
    tl.store(out_ptr + j * tl.num_programs(1) + tl.program_id(1), tl.sum(b_grad * b_grad, axis=0))


def block_width(width: int) -> int:
    """Return the number of columns of a block."""
    return min(triton.next_power_of_2(width), BLOCK_WIDTH)


def block_pairs(block: int, table_bytes: int, warps: int = 4) -> int:
    """Return how many rows are in flight: 64 bytes a thread hide latency and do not spill."""
    return max(1, min(8, 2048 * warps // (block * table_bytes)))


def pair_part(pairs: Pairs, weights: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    """Return what `latent_row` reads: table, tokens, slots, weights, starts and sums over pieces.

    The sums over pieces are 2 nnz / PIECE rows: 75 MB at 8,192 tokens, k = 64, d = 2304.
    """
    table, weights, width = table.contiguous(), weights.contiguous(), table.shape[1]
    count = 2 * pairs.slots.numel() // PIECE
    acc_dtype = torch.promote_types(table.dtype, torch.float32)
    partials = torch.empty(count, width, dtype=acc_dtype, device=table.device)
    block = block_width(width)
    if count > 0:
        with on_device_of(table):
            _sum_pieces_kernel[(count, triton.cdiv(width, block))](
                partials_ptr=partials,
                table_ptr=table,
                tokens_ptr=pairs.tokens,
                slots_ptr=pairs.slots,
                weights_ptr=weights,
                starts_ptr=pairs.latent_starts,
                indices_ptr=pairs.indices.contiguous(),
                width=width,
                ACC=accumulator(table.dtype),
                PIECE=PIECE,
                BLOCK_P=block_pairs(block, table.element_size()),
                BLOCK_D=block,
            )
    return table, pairs.tokens, pairs.slots, weights, pairs.latent_starts, partials


def _row_part(d_sae: int, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the position of each latent in `rows` (int32 [d_sae], -1 if absent), and `rows`."""
    positions = torch.full((d_sae,), -1, dtype=torch.int32, device=rows.device)
    order = torch.arange(len(latents), dtype=torch.int32, device=rows.device)
    return positions.index_copy_(0, latents, order), rows.contiguous()


def kernel_parts(d_sae: int, parts: RowGrads | None) -> tuple[tuple, tuple]:
    """Return the pair parts and row parts as kernels take them; they unroll loops over parts."""
    if parts is None:
        return (), ()
    row_parts = tuple(_row_part(d_sae, *part) for part in parts.row_parts)
    return tuple(pair_part(*part) for part in parts.pair_parts), row_parts


def table_bytes(pair_parts: tuple) -> int:
    """Return the largest element size among the tables of the pair parts, in bytes."""
    return max((part[0].element_size() for part in pair_parts), default=4)


def square_norm(rows: Tensor, dense: Tensor | None, parts: RowGrads) -> Tensor:
    """Return the squared norm of the gradient of a [d_sae, d] matrix: 0-d, float64."""
    d_sae, width = rows.shape
    block = block_width(width)
    acc_dtype = torch.promote_types(rows.dtype, torch.float32)
    blocks = triton.cdiv(width, block)
    squares = torch.empty(d_sae, blocks, dtype=acc_dtype, device=rows.device)
    pair_parts, row_parts = kernel_parts(d_sae, parts)
    with on_device_of(rows):
        _square_norm_kernel[(d_sae, blocks)](
            out_ptr=squares,
            dense_ptr=None if dense is None else dense.contiguous(),
            pair_parts=pair_parts,
            row_parts=row_parts,
            width=width,
            ACC=accumulator(rows.dtype),
            PIECE=PIECE,
            BLOCK_P=block_pairs(block, table_bytes(pair_parts)),
            BLOCK_D=block,
        )
    return squares.sum(dtype=torch.float64)
