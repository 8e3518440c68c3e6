"""`sae_kernels.adam` in Triton: every element of param and moments is read and written once.

The rows of a gradient in parts are computed in registers (`gpu.row_grads`) and never reach memory.
Arithmetic is fp32 (float64 for float64). With unit_norm a program holds a complete row, up to d =
8192 without spilling (at most 120 registers); wider rows give correct results but spill.

A bf16 moment of wider rows is rounded stochastically: 16 random bits are added to the 16 that are
cut off. They are counter-based: Philox (Salmon et al. 2011) of (seed, step, row, block) once per
program, then a 32-bit mix (8 instructions, where Philox takes 100) of its words with the column.
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
    block_pairs,
    block_width,
    gradient_row,
    kernel_parts,
    table_bytes,
)
from sae_kernels.hyper_values import hyper_values
from sae_kernels.row_grads import RowGrads

_BLOCK = 1024  # columns of a block, for a tensor that is treated as one long row


@triton.jit
def _count_parts(pair_parts, row_parts, j):
    """Return how many parts contribute to row j."""
    count = 0
    for n in tl.static_range(len(pair_parts)):
        starts = pair_parts[n][4]
        count += (tl.load(starts + j) < tl.load(starts + j + 1)).to(tl.int32)
    for n in tl.static_range(len(row_parts)):
        count += (tl.load(row_parts[n][0] + j) >= 0).to(tl.int32)
    return count


@triton.jit
def _random_bits(seed, step, row, block, o_d):
    """Return [BLOCK] random uint32. The mix is C. Wellons' lowbias32, a bijection of 32 bits."""
    word, other, _, _ = tl.philox(
        seed, row.to(tl.uint32), block.to(tl.uint32), step.to(tl.uint32), tl.full((), 0, tl.uint32)
    )
    b_x = o_d.to(tl.uint32) + word
    b_x = (b_x ^ (b_x >> 16)) * 0x7FEB352D
    b_x = (b_x ^ (b_x >> 15) ^ other) * 0x846CA68B
    return b_x ^ (b_x >> 16)


@triton.jit
def _to_bf16(b_x, b_random):
    """Round fp32 to bf16, up or down so that the result is unbiased. b_random < 2^16."""
    b_bits = b_x.to(tl.float32).to(tl.uint32, bitcast=True)
    # An infinity has no bits that are cut off, but a NaN may have all its bits there.
    b_bits = tl.where(b_x == b_x, b_bits + b_random, b_bits | 0x400000)
    return (b_bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit(do_not_specialize=["seed"])
def _adam_kernel(
    param_ptr,
    master_ptr,
    dense_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    pair_parts,
    row_parts,
    scale_ptr,
    hyper_ptr,
    count,
    width,
    rate: tl.float64,  # lr / (1 - beta1^t)
    root_scale: tl.float64,  # sqrt(1 - beta2^t)
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    step: tl.float64,
    seed: tl.int64,
    UNIT_NORM: tl.constexpr,
    LAZY: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ACC: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Update one block of columns of one row. Program (row, block); `count` elements in total."""
    j = tl.program_id(0).to(tl.int64)
    if LAZY and _count_parts(pair_parts, row_parts, j) == 0:
        return
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    o_i = j * width + o_d
    m_i = (o_d < width) & (o_i < count)
    b_g = gradient_row(
        dense_ptr, pair_parts, row_parts, j, width, o_d, m_i, ACC, PIECE, BLOCK_P, BLOCK_D
    )
    if scale_ptr is not None:
        b_g *= tl.load(scale_ptr).to(ACC)
    if hyper_ptr is not None:
        rate = tl.load(hyper_ptr).to(tl.float64)
        root_scale = tl.load(hyper_ptr + 1).to(tl.float64)
        beta1 = tl.load(hyper_ptr + 2).to(tl.float64)
        beta2 = tl.load(hyper_ptr + 3).to(tl.float64)
        eps = tl.load(hyper_ptr + 4).to(tl.float64)
        step = tl.load(hyper_ptr + 5).to(tl.float64)
    # param and moments are used once: evict them first, because the gathered tables are read again.
    rows_ptr = param_ptr if master_ptr is None else master_ptr
    b_p = tl.load(rows_ptr + o_i, mask=m_i, other=0.0, eviction_policy="evict_first").to(ACC)
    if UNIT_NORM:
        square = tl.sum(b_p * b_p, axis=0)
        b_g -= tl.sum(b_p * b_g, axis=0) / tl.where(square > 0, square, 1.0) * b_p
    b_m = tl.load(exp_avg_ptr + o_i, mask=m_i, other=0.0, eviction_policy="evict_first").to(ACC)
    b_v = tl.load(exp_avg_sq_ptr + o_i, mask=m_i, other=0.0, eviction_policy="evict_first").to(ACC)
    # 1 - beta is computed in float64: in fp32, 1 - 0.999 would be off by 1e-5.
    b_m = tl.full((), beta1, ACC) * b_m + tl.full((), 1 - beta1, ACC) * b_g
    b_v = tl.full((), beta2, ACC) * b_v + tl.full((), 1 - beta2, ACC) * b_g * b_g
    b_root = tl.sqrt(b_v) / tl.full((), root_scale, ACC) + tl.full((), eps, ACC)
    b_p -= tl.where(m_i, tl.full((), rate, ACC) * b_m / b_root, 0.0)
    if UNIT_NORM:
        square = tl.sum(b_p * b_p, axis=0)
        b_p /= tl.sqrt(tl.where(square > 0, square, 1.0))
    if STOCHASTIC:
        b_random = _random_bits(seed, tl.full((), step, tl.int64), j, tl.program_id(1), o_d)
        b_m = _to_bf16(b_m, b_random & 0xFFFF)
        b_v = _to_bf16(b_v, b_random >> 16)
    moment_ty: tl.constexpr = exp_avg_ptr.dtype.element_ty
    tl.store(exp_avg_ptr + o_i, b_m.to(moment_ty), mask=m_i, eviction_policy="evict_first")
    tl.store(exp_avg_sq_ptr + o_i, b_v.to(moment_ty), mask=m_i, eviction_policy="evict_first")
    if master_ptr is not None:
        tl.store(master_ptr + o_i, b_p, mask=m_i, eviction_policy="evict_first")
    tl.store(param_ptr + o_i, b_p.to(param_ptr.dtype.element_ty), mask=m_i)


def adam_rows(
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
    unit_norm: bool,
    parts: RowGrads | None = None,
    scale: Tensor | None = None,
    master: Tensor | None = None,
    seed: int = 0,
    lazy: bool = False,
    hyper: Tensor | None = None,
) -> None:
    """Take one step in place on contiguous [rows, width] tensors; both moments have one dtype.

    `hyper` is the six `hyper_values` in a float64 tensor on the device (in fp32, 1 - beta2 is off
    by 1e-5). It is read instead of the scalars, so that a captured graph can be replayed with
    another lr and step.
    """
    in_rows = unit_norm or bool(parts)
    width = param.shape[1] if in_rows else _BLOCK
    block = triton.next_power_of_2(width) if unit_norm or not in_rows else block_width(width)
    rows = param if master is None else master
    row_bytes = block * max(rows.element_size(), 4)
    warps = 4 if row_bytes <= 8192 else 8 if row_bytes <= 16384 else 16
    pair_parts, row_parts = kernel_parts(param.shape[0], parts)
    values = hyper_values(step, lr, beta1, beta2, eps)
    grid = (triton.cdiv(param.numel(), width), triton.cdiv(width, block))
    with on_device_of(param):
        _adam_kernel[grid](
            param_ptr=param,
            master_ptr=master,
            dense_ptr=grad,
            exp_avg_ptr=exp_avg,
            exp_avg_sq_ptr=exp_avg_sq,
            pair_parts=pair_parts,
            row_parts=row_parts,
            scale_ptr=scale,
            hyper_ptr=hyper,
            count=param.numel(),
            width=width,
            rate=values[0],
            root_scale=values[1],
            beta1=values[2],
            beta2=values[3],
            eps=values[4],
            step=values[5],
            seed=seed,
            UNIT_NORM=unit_norm,
            LAZY=lazy,
            STOCHASTIC=exp_avg.dtype == torch.bfloat16 != rows.dtype,
            ACC=accumulator(rows.dtype),
            PIECE=gpu_row_grads.PIECE,
            BLOCK_P=block_pairs(block, table_bytes(pair_parts), warps),
            BLOCK_D=block,
            num_warps=warps,
        )
