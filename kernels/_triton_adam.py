"""`sae_kernels.adam` in Triton: every element is read and written once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sae_kernels._triton_launch import accumulator, on_device_of

_BLOCK = 1024


@triton.jit
def _adam_kernel(
    param_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    width,
    rate: tl.float64,  # lr / (1 - beta1^t)
    root_scale: tl.float64,  # sqrt(1 - beta2^t)
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    UNIT_NORM: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row of `width` elements; without UNIT_NORM, per block of one long row."""
    if UNIT_NORM:
        o_d = tl.arange(0, BLOCK)
        m_i = o_d < width
        o_i = tl.program_id(0).to(tl.int64) * width + o_d
    else:
        o_i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        m_i = o_i < width
    b_p = tl.load(param_ptr + o_i, mask=m_i, other=0.0).to(ACC)
    b_g = tl.load(grad_ptr + o_i, mask=m_i, other=0.0).to(ACC)
    if UNIT_NORM:
        square = tl.sum(b_p * b_p, axis=0)
        b_g -= tl.sum(b_p * b_g, axis=0) / tl.where(square > 0, square, 1.0) * b_p
    b_m = tl.load(exp_avg_ptr + o_i, mask=m_i, other=0.0).to(ACC)
    b_v = tl.load(exp_avg_sq_ptr + o_i, mask=m_i, other=0.0).to(ACC)
    # 1 - beta is taken in float64: fp32 would leave 1 - 0.999 off by 1e-5.
    b_m = tl.full((), beta1, ACC) * b_m + tl.full((), 1 - beta1, ACC) * b_g
    b_v = tl.full((), beta2, ACC) * b_v + tl.full((), 1 - beta2, ACC) * b_g * b_g
    b_root = tl.sqrt(b_v) / tl.full((), root_scale, ACC) + tl.full((), eps, ACC)
    b_p -= tl.where(m_i, tl.full((), rate, ACC) * b_m / b_root, 0.0)
    if UNIT_NORM:
        square = tl.sum(b_p * b_p, axis=0)
        b_p /= tl.sqrt(tl.where(square > 0, square, 1.0))
    element_ty: tl.constexpr = param_ptr.dtype.element_ty
    tl.store(param_ptr + o_i, b_p.to(element_ty), mask=m_i)
    tl.store(exp_avg_ptr + o_i, b_m.to(element_ty), mask=m_i)
    tl.store(exp_avg_sq_ptr + o_i, b_v.to(element_ty), mask=m_i)


def adam_rows(
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
    unit_norm: bool,
) -> None:
    """In place on contiguous tensors of one dtype; the host takes the powers of the betas."""
    width = param.shape[1] if unit_norm else param.numel()
    block = triton.next_power_of_2(width) if unit_norm else _BLOCK
    grid = (param.shape[0],) if unit_norm else (triton.cdiv(width, block),)
    with on_device_of(param):
        _adam_kernel[grid](
            param_ptr=param,
            grad_ptr=grad,
            exp_avg_ptr=exp_avg,
            exp_avg_sq_ptr=exp_avg_sq,
            width=width,
            rate=lr / (1 - beta1**step),
            root_scale=(1 - beta2**step) ** 0.5,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            UNIT_NORM=unit_norm,
            ACC=accumulator(param.dtype),
            BLOCK=block,
            num_warps=4 if block <= 2048 else 8,
        )
