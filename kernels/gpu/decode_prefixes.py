"""The two functions of `cpu.decode_prefixes` in Triton.

A program goes through the slots of one token level by level, with the errors of one block of
columns in registers. In the forward pass, it subtracts the slots of a level from the error and
stores its square. In the backward pass, it adds the error of a level to G and the slots back to the
error. There are no atomics: partial squares and dot products of the blocks are summed afterwards,
in a fixed order.
"""

# Triton's annotations describe code inside a kernel: a launch takes plain values for constexpr.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.cpu.decode_prefixes import column_blocks
from sae_kernels.gpu.launch import accumulator, on_device_of
from sae_kernels.pairs import Pairs

_BLOCK_WIDTH = 512
# Elements of [batch, n_levels, columns]: 128 MB in bf16; 256 columns for 8192 tokens of 32 levels.
_CHUNK_ELEMENTS = 2**26


@triton.jit
def _weighted_rows(
    p, last, table_ptr, stride, latents_ptr, weights_ptr, o_d, m_d, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Return the table rows and weights of slots p : p + BLOCK_P; both are 0 from `last` on."""
    o_p = p + tl.arange(0, BLOCK_P)
    m_p = o_p < last
    b_latent = tl.load(latents_ptr + o_p, mask=m_p, other=0)
    b_weight = tl.load(weights_ptr + o_p, mask=m_p, other=0.0).to(ACC)
    b_rows = tl.load(
        table_ptr + b_latent[:, None] * stride + o_d[None, :],
        mask=m_p[:, None] & m_d[None, :],
        other=0.0,
    )
    return b_rows.to(ACC), b_weight


@triton.jit
def _prefix_squares_kernel(
    squares_ptr,
    table_ptr,
    bias_ptr,
    target_ptr,
    latents_ptr,
    weights_ptr,
    starts_ptr,
    n_levels,
    width,
    stride,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the squared errors of one token at every level. Program (i, block of columns).

    squares[i, block, l] = the sum over the block of (target[i] - x_hat_l[i])^2. The slots of (i, l)
    are starts[i * n_levels + l] : starts[i * n_levels + l + 1].
    """
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    o_d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < width
    b_error = tl.load(target_ptr + i * stride + o_d, mask=m_d, other=0.0).to(ACC)
    b_error -= tl.load(bias_ptr + o_d, mask=m_d, other=0.0).to(ACC)
    out_ptr = squares_ptr + (i * tl.num_programs(1) + block) * n_levels
    starts_ptr += i * n_levels
    first = tl.load(starts_ptr)
    for level in range(0, n_levels):
        last = tl.load(starts_ptr + level + 1)
        for p in range(first, last, BLOCK_P):
            b_rows, b_weight = _weighted_rows(
                p, last, table_ptr, stride, latents_ptr, weights_ptr, o_d, m_d, ACC, BLOCK_P
            )
            b_error -= tl.sum(b_weight[:, None] * b_rows, axis=0)
        tl.store(out_ptr + level, tl.sum(b_error * b_error, axis=0))
        first = last


@triton.jit
def _prefix_gradients_kernel(
    grads_ptr,
    dots_ptr,
    table_ptr,
    bias_ptr,
    target_ptr,
    latents_ptr,
    weights_ptr,
    starts_ptr,
    scale_ptr,
    n_slots,
    n_levels,
    width,
    stride,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the gradients of one token's errors at every level. Program (i, block of columns).

    grads[i, l] = the sum over m >= l of scale[m] * error_m[i],
    dots[block, p] = <grads[i, l], table[latents[p]]> over the block, for the slots p of (i, l).
    The error of the last level is computed first, BLOCK_R slots at a time.
    """
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    o_d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < width
    b_error = tl.load(target_ptr + i * stride + o_d, mask=m_d, other=0.0).to(ACC)
    b_error -= tl.load(bias_ptr + o_d, mask=m_d, other=0.0).to(ACC)
    starts_ptr += i * n_levels
    grads_ptr += i * n_levels * width
    dots_ptr += block * n_slots
    last = tl.load(starts_ptr + n_levels)
    for p in range(tl.load(starts_ptr), last, BLOCK_R):
        b_rows, b_weight = _weighted_rows(
            p, last, table_ptr, stride, latents_ptr, weights_ptr, o_d, m_d, ACC, BLOCK_R
        )
        b_error -= tl.sum(b_weight[:, None] * b_rows, axis=0)
    b_grad = tl.zeros((BLOCK_D,), ACC)
    for back in range(0, n_levels):
        level = n_levels - 1 - back
        b_grad += tl.load(scale_ptr + level) * b_error
        b_stored = b_grad.to(grads_ptr.dtype.element_ty)
        tl.store(grads_ptr + level.to(tl.int64) * width + o_d, b_stored, mask=m_d)
        first = tl.load(starts_ptr + level)
        for p in range(first, last, BLOCK_P):
            b_rows, b_weight = _weighted_rows(
                p, last, table_ptr, stride, latents_ptr, weights_ptr, o_d, m_d, ACC, BLOCK_P
            )
            b_error += tl.sum(b_weight[:, None] * b_rows, axis=0)
            o_p = p + tl.arange(0, BLOCK_P)
            tl.store(dots_ptr + o_p, tl.sum(b_grad[None, :] * b_rows, axis=1), mask=o_p < last)
        last = first


def _slots_at_once(pairs: Pairs) -> int:
    """Return the mean number of slots of a (token, level), at most 8. Two slots share a warp."""
    mean = pairs.indices.numel() // max(pairs.batch, 1)
    return min(triton.next_power_of_2(max(mean, 1)), 8)


def squared_errors(
    pairs: Pairs, n_levels: int, weights: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> Tensor:
    """Return the sum of squared errors of each prefix: [n_levels]."""
    W_dec, batch, width = W_dec.contiguous(), target.shape[0], W_dec.shape[1]
    block = min(triton.next_power_of_2(width), _BLOCK_WIDTH)
    blocks, slots = triton.cdiv(width, block), _slots_at_once(pairs)
    acc_dtype = torch.promote_types(W_dec.dtype, torch.float32)
    partial = torch.empty(batch, blocks, n_levels, dtype=acc_dtype, device=W_dec.device)
    with on_device_of(W_dec):
        _prefix_squares_kernel[(batch, blocks)](
            squares_ptr=partial,
            table_ptr=W_dec,
            bias_ptr=b_dec.contiguous(),
            target_ptr=target.contiguous(),
            latents_ptr=pairs.indices,
            weights_ptr=weights,
            starts_ptr=pairs.row_starts,
            n_levels=n_levels,
            width=width,
            stride=width,
            ACC=accumulator(W_dec.dtype),
            BLOCK_P=slots,
            BLOCK_D=block,
            num_warps=max(slots // 2, 1),
        )
    return partial.sum((0, 1))


def error_gradients(
    pairs: Pairs,
    n_levels: int,
    weights: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    scale: Tensor,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (columns, G, dot products) for each block of columns; see `cpu.decode_prefixes`.

    The dot products of padding are not written.
    """
    W_dec, b_dec, target = W_dec.contiguous(), b_dec.contiguous(), target.contiguous()
    batch, d_in = target.shape
    acc_dtype = torch.promote_types(W_dec.dtype, torch.float32)
    slots, n_slots = _slots_at_once(pairs), weights.shape[0]
    for columns in column_blocks(d_in, pairs.batch, _CHUNK_ELEMENTS):
        width = columns.stop - columns.start
        block = min(triton.next_power_of_2(width), _BLOCK_WIDTH)
        blocks = triton.cdiv(width, block)
        grads = torch.empty(pairs.batch, width, dtype=W_dec.dtype, device=W_dec.device)
        dots = torch.empty(blocks, n_slots, dtype=acc_dtype, device=W_dec.device)
        with on_device_of(W_dec):
            _prefix_gradients_kernel[(batch, blocks)](
                grads_ptr=grads,
                dots_ptr=dots,
                table_ptr=W_dec[:, columns],
                bias_ptr=b_dec[columns],
                target_ptr=target[:, columns],
                latents_ptr=pairs.indices,
                weights_ptr=weights,
                starts_ptr=pairs.row_starts,
                scale_ptr=scale,
                n_slots=n_slots,
                n_levels=n_levels,
                width=width,
                stride=d_in,
                ACC=accumulator(W_dec.dtype),
                BLOCK_P=slots,
                BLOCK_R=max(slots, 4),
                BLOCK_D=block,
                num_warps=max(slots // 2, 1),
            )
        yield columns, grads, dots.sum(0)
