"""Every pre-activation above a floor (ReLU, JumpReLU, Gated), on the GPU.

Pre-activations come from `pre_acts_chunks`, rounded to the inputs' dtype, and are compared in fp32
or wider. One program per row counts, a cumulative sum over the rows gives the start of each, and a
second pass over the same chunk writes. So the slots are in the order of (row, column).
`cpu.encode_threshold` has the same function.
"""

# Triton's annotations describe code inside a kernel: a launch takes plain values for constexpr.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.gpu.launch import on_device_of
from sae_kernels.gpu.pre_acts import pre_acts_chunks
from sae_kernels.slots import Slots

_BLOCK = 1024


@triton.jit
def _above(pre_ptr, floor_ptr, o_c, d_sae, PER_LATENT: tl.constexpr):
    """Return the pre-activations at columns o_c, and which of them are above their floor or NaN."""
    m_c = o_c < d_sae
    b_pre = tl.load(pre_ptr + o_c, mask=m_c, other=0.0)
    b_floor = tl.load(floor_ptr + o_c, mask=m_c, other=0.0) if PER_LATENT else tl.load(floor_ptr)
    return b_pre, m_c & ~(b_pre.to(b_floor.dtype) <= b_floor)


@triton.jit
def _count_kernel(
    counts_ptr, pre_ptr, floor_ptr, d_sae, PER_LATENT: tl.constexpr, BLOCK: tl.constexpr
):
    """Store in counts[row] how many values of a row are above the floor. One program per row."""
    row = tl.program_id(0).to(tl.int64)
    b_count = tl.zeros((BLOCK,), tl.int32)
    for c in range(0, d_sae, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        _, m_above = _above(pre_ptr + row * d_sae, floor_ptr, o_c, d_sae, PER_LATENT)
        b_count += m_above.to(tl.int32)
    tl.store(counts_ptr + row, tl.sum(b_count, axis=0).to(tl.int64))


@triton.jit
def _write_kernel(
    indices_ptr,
    values_ptr,
    starts_ptr,
    pre_ptr,
    floor_ptr,
    d_sae,
    capacity,
    PER_LATENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a row's values above the floor from slot starts[row] on, up to the capacity."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(starts_ptr + row)
    for c in range(0, d_sae, BLOCK):
        o_c = c + tl.arange(0, BLOCK)
        b_pre, m_above = _above(pre_ptr + row * d_sae, floor_ptr, o_c, d_sae, PER_LATENT)
        b_take = m_above.to(tl.int32)
        o_slot = slot + tl.cumsum(b_take, axis=0) - 1
        m_take = m_above & (o_slot < capacity)
        tl.store(indices_ptr + o_slot, o_c.to(tl.int64), mask=m_take)
        tl.store(values_ptr + o_slot, b_pre, mask=m_take)
        slot += tl.sum(b_take, axis=0)


def above_floor(
    centred: Tensor,
    W_rows: Tensor,
    bias: Tensor,
    floor: Tensor | float,
    capacity: int | None = None,
) -> Slots:
    """Return every pre-activation above `floor`: one number, or [d_sae].

    With a capacity nothing waits for the device. Without one the number of slots is read back for
    each chunk of rows before they are written. Counting the whole batch first would wait only once,
    but compute every product twice.
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    acc_dtype = torch.promote_types(centred.dtype, torch.float32)
    if not isinstance(floor, Tensor):
        floor = torch.full((), floor, dtype=acc_dtype, device=centred.device)
    floor = floor.contiguous()
    offsets = torch.zeros(batch + 1, dtype=torch.int64, device=centred.device)

    def empty_slots(size: int) -> tuple[Tensor, Tensor]:
        return offsets.new_zeros(size), centred.new_full((size,), -torch.inf)

    parts = [empty_slots(capacity or 0)]
    with on_device_of(centred):
        for rows, pre in pre_acts_chunks(centred, W_rows, bias):
            arguments = {
                "pre_ptr": pre,
                "floor_ptr": floor,
                "d_sae": d_sae,
                "PER_LATENT": floor.dim() == 1,
                "BLOCK": min(triton.next_power_of_2(d_sae), _BLOCK),
            }
            starts = offsets[rows.start : rows.stop + 1]
            _count_kernel[(len(pre),)](counts_ptr=starts[1:], **arguments)
            starts.cumsum_(0)
            size = capacity
            if capacity is None:
                starts = starts - starts[0]
                size = int(starts[-1])
                parts.append(empty_slots(size))
            _write_kernel[(len(pre),)](
                indices_ptr=parts[-1][0],
                values_ptr=parts[-1][1],
                starts_ptr=starts,
                capacity=size,
                **arguments,
            )
    indices, values = (torch.cat(part) for part in zip(*parts, strict=True))
    dropped = None
    if capacity is not None:
        dropped = (offsets[-1] - capacity).clamp_(min=0)
        offsets.clamp_(max=capacity)
    return Slots(indices, offsets, values.to(acc_dtype), dropped)
