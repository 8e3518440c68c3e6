"""Gradient rows of a matrix with one row a latent, made in registers from their parts, in Triton.

Row j of the gradient [d_sae, d], in fp32 (float64 for float64):
    dense[j] + sum over pair parts, over the pairs p of latent j, of weights[slot_p] *
    table[token_p] + sum over row parts of rows[position of j].
Terms are added in a fixed order by one owner: no atomics, two runs give the same bits. Offsets are
int64. `gpu.adam` consumes the rows; here their squared norm is taken. Nothing of [d_sae, d] is
written.

A latent that fires on a third of 8,192 tokens has 2,700 pairs, which one program would walk alone
while the device idles. A list start : end of n > PIECE pairs is cut in pieces of PIECE; a first
pass sums each into a row of scratch, and who wants the row of the latent adds those, in order.
Piece i has the number 2 start // PIECE + i, for which nothing need be counted or asked of the
device. With m PIECE < n <= (m + 1) PIECE, m >= 1:
    2 end // PIECE - 2 start // PIECE >= 2 m >= m + 1, so that the numbers of two lists never meet
    and all are below 2 nnz // PIECE, which is how many programs are launched;
    pair (number + 1) PIECE / 2 - 1 lies in start : end, and there a program finds its latent.
"""

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
def piece_run(number, indices, slots, starts, PIECE: tl.constexpr):
    """(latent, first, last): whose piece this is, and its pairs. None has first >= last."""
    slot = tl.load(slots + (number + 1) * PIECE // 2 - 1)
    j = tl.load(indices + slot)  # of padding, any: first is then behind the end
    start = tl.load(starts + j)
    end = tl.load(starts + j + 1)
    first = start + (number - 2 * start // PIECE) * PIECE
    return j, first, tl.where(end - start > PIECE, tl.minimum(first + PIECE, end), first)


@triton.jit
def whole_run(j, starts, PIECE: tl.constexpr):
    """(first, last): the pairs of latent j; none when they are cut."""
    first = tl.load(starts + j)
    last = tl.load(starts + j + 1)
    return first, tl.where(last - first > PIECE, first, last)


@triton.jit
def add_rows(b_acc, first, last, table, rows, slots, weights, width, o_d, m_d, BLOCK_P):
    """b_acc [BLOCK_P, BLOCK_D]: line i += weights[slots[p]] * table[rows[p]], p = first + i, i +
    BLOCK_P, ... below last.

    Without rows, rows[p] is p; without slots, slots[p] is p; without weights they are 1. Adding the
    lines up is left to the caller: in this loop it would be a trip through shared memory.
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
    """Row j of the gradient in one `pair_part`, added to the lines of b_acc [BLOCK_P, BLOCK_D]."""
    table, tokens, slots, weights, starts, partials = part
    first, last = whole_run(j, starts, PIECE)
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
    """[BLOCK_D]: row j of the whole gradient; dense may be None, both tuples may be empty."""
    b_acc = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    for n in tl.static_range(len(pair_parts)):
        b_acc = latent_row(pair_parts[n], j, width, o_d, m_d, b_acc, PIECE, BLOCK_P)
    b_grad = tl.sum(b_acc, axis=0)
    for n in tl.static_range(len(row_parts)):
        positions, rows = row_parts[n]
        at = tl.load(positions + j).to(tl.int64)
        m_at = m_d & (o_d < tl.where(at >= 0, width, 0))
        b_grad += tl.load(rows + at * width + o_d, mask=m_at, other=0.0).to(ACC)
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
    """partials[number] = the sum over that piece; one program per (number, block of columns)."""
    number = tl.program_id(0).to(tl.int64)
    _, first, last = piece_run(number, indices_ptr, slots_ptr, starts_ptr, PIECE)
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
    """out[j, block] = the sum of squares of that block of row j of the gradient."""
    j = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b_grad = gradient_row(
        dense_ptr, pair_parts, row_parts, j, width, o_d, o_d < width, ACC, PIECE, BLOCK_P, BLOCK_D
    )
    tl.store(out_ptr + j * tl.num_programs(1) + tl.program_id(1), tl.sum(b_grad * b_grad, axis=0))


def block_width(width: int) -> int:
    return min(triton.next_power_of_2(width), BLOCK_WIDTH)


def block_pairs(block: int, table_bytes: int, warps: int = 4) -> int:
    """How many rows are in flight: 64 bytes a thread, which hide latency and do not spill."""
    return max(1, min(8, 2048 * warps // (block * table_bytes)))


def pair_part(pairs: Pairs, weights: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    """What `latent_row` reads: table, tokens, slots, weights, starts, and the sums over pieces.

    Those are 2 nnz / PIECE rows: 75 MB at 8,192 tokens, k = 64, d = 2304.
    """
    table, weights, width = table.contiguous(), weights.contiguous(), table.shape[1]
    count = 2 * pairs.slots.numel() // PIECE
    wide = torch.promote_types(table.dtype, torch.float32)
    partials = torch.empty(count, width, dtype=wide, device=table.device)
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
    """(where in rows each latent is, -1 for nowhere, [d_sae] int32; rows)."""
    positions = torch.full((d_sae,), -1, dtype=torch.int32, device=rows.device)
    order = torch.arange(len(latents), dtype=torch.int32, device=rows.device)
    return positions.index_copy_(0, latents, order), rows.contiguous()


def kernel_parts(d_sae: int, parts: RowGrads | None) -> tuple[tuple, tuple]:
    """The pair parts and the row parts as kernels take them; any number of each, unrolled."""
    if parts is None:
        return (), ()
    row_parts = tuple(_row_part(d_sae, *part) for part in parts.row_parts)
    return tuple(pair_part(*part) for part in parts.pair_parts), row_parts


def table_bytes(pair_parts: tuple) -> int:
    return max((part[0].element_size() for part in pair_parts), default=4)


def square_norm(rows: Tensor, dense: Tensor | None, parts: RowGrads) -> Tensor:
    """|gradient|^2 of a matrix stored as `rows` [d_sae, d]: 0-d, float64, on the device."""
    d_sae, width = rows.shape
    block = block_width(width)
    wide = torch.promote_types(rows.dtype, torch.float32)
    blocks = triton.cdiv(width, block)
    squares = torch.empty(d_sae, blocks, dtype=wide, device=rows.device)
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
