"""TopK encoding forward on the GPU: a product into a bounded chunk of rows, then exact selection.

The product is the vendor's GEMM. Selection is one program per row, a radix search for the k-th
largest key: relu'd floats compare like their bit patterns, so four passes of eight bits (eight for
float64) find it exactly, whatever k, d_sae and the ties. A last pass writes what is above it, and
what equals it from the left, in the order of the columns. Nothing waits for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels._triton_launch import on_device_of

CHUNK_ELEMENTS = 2**27  # of pre-activations: 0.5 GB of fp32
CHUNK_MIN_ROWS = 256  # W_enc is read once a chunk, which fewer rows would not hide
_BLOCK = 1024


@triton.jit
def _pre_acts(pre_ptr, bias_ptr, o_c, m_c):
    b_pre = tl.load(pre_ptr + o_c, mask=m_c, other=0.0)
    b_pre += tl.load(bias_ptr + o_c, mask=m_c, other=0.0).to(b_pre.dtype)
    return tl.where(b_pre <= 0, 0.0, b_pre)  # NaN stays NaN, and -0.0 becomes 0.0


@triton.jit
def _keys(b_acts, KEY: tl.constexpr, TOP: tl.constexpr):
    """Integers in the order of the values; NaN above all, whatever its sign bit."""
    return tl.where(b_acts == b_acts, b_acts.to(KEY, bitcast=True), TOP)


@triton.jit
def _select_kernel(
    pre_ptr,
    bias_ptr,
    values_ptr,
    indices_ptr,
    d_sae,
    k,
    KEY: tl.constexpr,
    TOP: tl.constexpr,
    DIGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    pre_ptr += row * d_sae
    o_bin = tl.arange(0, 256)
    kth = tl.zeros((), KEY)
    room = k  # how many are still to be found among the keys that start like kth
    for i in tl.static_range(DIGITS):
        shift = 8 * (DIGITS - 1 - i)
        b_count = tl.zeros((256,), tl.int32)
        others = 0
        for c in range(0, d_sae, BLOCK):
            o_c = c + tl.arange(0, BLOCK)
            m_c = o_c < d_sae
            b_key = _keys(_pre_acts(pre_ptr, bias_ptr, o_c, m_c), KEY, TOP)
            m_same = m_c & ((((b_key ^ kth) >> shift) >> 8) == 0)
            b_digit = tl.where(m_same, (b_key >> shift) & 255, 0).to(tl.int32)
            b_count += tl.histogram(b_digit, 256)
            others += tl.sum(1 - m_same.to(tl.int32), axis=0)
        b_count -= tl.where(o_bin == 0, others, 0)
        b_at_least = tl.cumsum(b_count, axis=0, reverse=True)
        digit = tl.sum((b_at_least >= room).to(tl.int32), axis=0) - 1
        room -= tl.sum(tl.where(o_bin > digit, b_count, 0), axis=0)
        kth |= digit.to(KEY) << shift
    written = 0
    equal = 0
    for c in range(0, d_sae, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        m_c = o_c < d_sae
        b_acts = _pre_acts(pre_ptr, bias_ptr, o_c, m_c)
        b_key = _keys(b_acts, KEY, TOP)
        b_equal = (m_c & (b_key == kth)).to(tl.int32)
        m_equal = (b_equal > 0) & (equal + tl.cumsum(b_equal, axis=0) <= room)
        m_take = (m_c & (b_key > kth)) | m_equal
        b_take = m_take.to(tl.int32)
        o_out = row * k + written + tl.cumsum(b_take, axis=0) - 1
        tl.store(values_ptr + o_out, b_acts.to(values_ptr.dtype.element_ty), mask=m_take)
        tl.store(indices_ptr + o_out, o_c.to(tl.int64), mask=m_take)
        written += tl.sum(b_take, axis=0)
        equal += tl.sum(b_equal, axis=0)


def _product(centred: Tensor, W_rows: Tensor, out: Tensor) -> None:
    """centred @ W_rows.T into `out`, which is at least fp32."""
    if centred.dtype == out.dtype:
        torch.mm(centred, W_rows.t(), out=out)
    elif centred.is_cuda:
        torch.mm(centred, W_rows.t(), out_dtype=out.dtype, out=out)
    else:
        torch.mm(centred.to(out.dtype), W_rows.t().to(out.dtype), out=out)


def forward(centred: Tensor, W_rows: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """values and int64 indices, [batch, k], of centred [batch, d_in] and W_rows [d_sae, d_in]."""
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    wide = torch.promote_types(centred.dtype, torch.float32)
    values = torch.empty(batch, k, dtype=centred.dtype, device=centred.device)
    indices = torch.empty(batch, k, dtype=torch.int64, device=centred.device)
    rows = min(max(CHUNK_ELEMENTS // d_sae, CHUNK_MIN_ROWS), batch)
    pre = torch.empty(rows, d_sae, dtype=wide, device=centred.device)
    double = wide == torch.float64
    with on_device_of(centred):
        for start in range(0, batch, max(rows, 1)):
            chunk = slice(start, start + rows)
            size = min(rows, batch - start)
            _product(centred[chunk], W_rows, pre[:size])
            _select_kernel[(size,)](
                pre_ptr=pre,
                bias_ptr=b_enc.contiguous(),
                values_ptr=values[chunk],
                indices_ptr=indices[chunk],
                d_sae=d_sae,
                k=k,
                KEY=tl.int64 if double else tl.int32,
                TOP=2**63 - 1 if double else 2**31 - 1,
                DIGITS=8 if double else 4,
                BLOCK=min(triton.next_power_of_2(d_sae), _BLOCK),
            )
    return values, indices
