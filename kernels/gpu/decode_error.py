"""The forward pass of `decode_error` in Triton: gather, subtract and square in one pass."""

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

_BLOCK_PAIRS = 8  # rows in flight: independent loads that hide each other's latency
_BLOCK_WIDTH = 512


@triton.jit
def _error_kernel(
    residual_ptr,
    squares_ptr,
    table_ptr,
    bias_ptr,
    target_ptr,
    latents_ptr,
    weights_ptr,
    starts_ptr,
    width,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute one block of columns of one residual and its sum of squares. Program (i, block).

    residual[i] = target[i] - bias - sum over p in starts[i] : starts[i + 1] of
        weights[p] * table[latents[p]],
    squares[i, block] = the sum of the squares of the residual, as it is stored.
    """
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    o_d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < width
    first = tl.load(starts_ptr + i)
    last = tl.load(starts_ptr + i + 1)
    b_sum = tl.load(bias_ptr + o_d, mask=m_d, other=0.0).to(ACC)
    for p in range(first, last, BLOCK_P):
        o_p = p + tl.arange(0, BLOCK_P)
        m_p = o_p < last
        b_latent = tl.load(latents_ptr + o_p, mask=m_p, other=0)
        b_weight = tl.load(weights_ptr + o_p, mask=m_p, other=0.0).to(ACC)
        b_row = tl.load(
            table_ptr + b_latent[:, None] * width + o_d[None, :],
            mask=m_p[:, None] & m_d[None, :],
            other=0.0,
        )
        b_sum += tl.sum(b_weight[:, None] * b_row.to(ACC), axis=0)
    b_target = tl.load(target_ptr + i * width + o_d, mask=m_d, other=0.0)
    b_residual = (b_target.to(ACC) - b_sum).to(residual_ptr.dtype.element_ty)
    tl.store(residual_ptr + i * width + o_d, b_residual, mask=m_d)
    b_error = b_residual.to(ACC)
    tl.store(squares_ptr + i * tl.num_programs(1) + block, tl.sum(b_error * b_error, axis=0))


def forward(
    pairs: Pairs, weights: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (residual [batch, d_in], its sum of squares, 0-d); weights [nnz]."""
    width = W_dec.shape[1]
    block = min(triton.next_power_of_2(width), _BLOCK_WIDTH)
    blocks = triton.cdiv(width, block)
    residual = torch.empty(pairs.batch, width, dtype=W_dec.dtype, device=W_dec.device)
    acc_dtype = torch.promote_types(W_dec.dtype, torch.float32)
    squares = torch.empty(pairs.batch, blocks, dtype=acc_dtype, device=W_dec.device)
    with on_device_of(W_dec):
        _error_kernel[(pairs.batch, blocks)](
            residual_ptr=residual,
            squares_ptr=squares,
            table_ptr=W_dec.contiguous(),
            bias_ptr=b_dec.contiguous(),
            target_ptr=target.contiguous(),
            latents_ptr=pairs.indices.contiguous(),
            weights_ptr=weights.contiguous(),
            starts_ptr=pairs.row_starts,
            width=width,
            ACC=accumulator(W_dec.dtype),
            BLOCK_P=_BLOCK_PAIRS,
            BLOCK_D=block,
        )
    return residual, squares.sum()
