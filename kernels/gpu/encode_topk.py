"""values, indices = relu of the k largest of pre = centred @ W_rows.T + b_enc, per row, on the GPU.

centred [batch, d_in], W_rows [d_sae, d_in], b_enc [d_sae], all of one dtype; values [batch, k] in
that dtype, indices int64, in the order of the columns. Products are summed in fp32 (float64 for
float64) and rounded once to the inputs' dtype. Selection is exact for the rounded numbers: the set
is that of a stable descending sort, so a tie at the k-th place goes to the lowest index.
Pre-activations exist only for a bounded chunk of rows. Nothing is saved here, because the backward
pass needs only the codes.

A row is selected through the maxima of its groups of 32 columns. The k groups with the largest
maxima (the lowest ones if they tie) hold the k largest elements, ties included. An element above
the k-th maximum puts its group among them, so all such elements are in. As for elements equal to
it, each group that a tie let in holds one to the left of any group that was left out. So one pass
over the row computes the maxima, and 32 k elements are read again.

Both selections, of groups and of elements, are the same radix search for the k-th largest key, with
one program per row: relu'd floats compare like their bit patterns, eight bits a pass, for any k and
d_sae. The kernels read the numbers as integers of the same width.
"""

# Triton's annotations describe code inside a kernel: a launch takes plain values for constexpr.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.gpu.encoder_matmul import fits
from sae_kernels.gpu.launch import on_device_of
from sae_kernels.gpu.pre_acts import acts_chunks, choose_product, pre_acts_chunks

GROUP = 32  # columns that share a maximum
_BLOCK = 1024
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_INF = {  # the bit pattern of +inf; larger patterns, without the sign, are NaN
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
    torch.float32: 0x7F800000,
    torch.float64: 0x7FF << 52,
}


@triton.jit
def keys(b_bits, INF: tl.constexpr, TOP: tl.constexpr, KEY: tl.constexpr):
    """Return integers in the order of the relu'd values; NaN of either sign is above all."""
    b_bits = b_bits.to(KEY)
    return tl.where((b_bits & TOP) > INF, TOP, tl.maximum(b_bits, 0))


@triton.jit
def _group_max_kernel(
    pre_ptr,
    maxima_ptr,
    d_sae,
    INF: tl.constexpr,
    TOP: tl.constexpr,
    KEY: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute relu of the maximum of each GROUP contiguous columns. A program has BLOCK groups."""
    row = tl.program_id(0).to(tl.int64)
    n_groups = tl.cdiv(d_sae, GROUP)
    o_g = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    o_c = o_g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    b_bits = tl.load(pre_ptr + row * d_sae + o_c, mask=o_c < d_sae, other=0)
    b_max = tl.max(keys(b_bits, INF, TOP, KEY), axis=1)
    b_max = b_max.to(maxima_ptr.dtype.element_ty)
    tl.store(maxima_ptr + row * n_groups + o_g, b_max, mask=o_g < n_groups)


@triton.jit
def _load_keys(
    bits_ptr,
    groups_ptr,
    p,
    k,
    width,
    INF: tl.constexpr,
    TOP: tl.constexpr,
    KEY: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the columns and keys of candidates p : p + BLOCK of a row, and which of them exist.

    All columns are candidates, or only those of the k groups at groups_ptr.
    """
    o_c = p + tl.arange(0, BLOCK)
    if groups_ptr is not None:
        b_group = tl.load(groups_ptr + o_c // GROUP, mask=o_c < k * GROUP, other=width)
        o_c = b_group * GROUP + o_c % GROUP
    m_c = o_c < width
    b_bits = tl.load(bits_ptr + o_c, mask=m_c, other=0)
    return o_c, keys(b_bits, INF, TOP, KEY), m_c


@triton.jit
def _select_kernel(
    bits_ptr,
    groups_ptr,
    values_ptr,
    indices_ptr,
    width,
    k,
    INF: tl.constexpr,
    TOP: tl.constexpr,
    KEY: tl.constexpr,
    DIGITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the k largest of a row of `width` bit patterns, in the order of the columns.

    groups_ptr [rows, k], ascending, or None: see `_load_keys`. With values_ptr None only the
    indices are written. One program per row.
    """
    row = tl.program_id(0).to(tl.int64)
    bits_ptr += row * width
    count = width
    if groups_ptr is not None:
        groups_ptr += row * k
        count = k * GROUP
    o_bin = tl.arange(0, 256)
    kth = tl.zeros((), KEY)
    room = k  # how many of the k are still missing, among the keys that start like kth
    # A loop at run time: unrolled, it takes 2 to 8 times as long to compile, and Triton 3.7 spills.
    for i in range(DIGITS):
        shift = 8 * (DIGITS - 1 - i)
        b_count = tl.zeros((256,), tl.int32)
        for p in range(0, count, BLOCK):
            _, b_key, m_c = _load_keys(
                bits_ptr, groups_ptr, p, k, width, INF, TOP, KEY, GROUP, BLOCK
            )
            m_same = m_c & ((((b_key ^ kth) >> shift) >> 8) == 0)
            b_digit = ((b_key >> shift) & 255).to(tl.int32)
            b_count += tl.histogram(b_digit, 256, mask=m_same)
        b_at_least = tl.cumsum(b_count, axis=0, reverse=True)
        digit = tl.sum((b_at_least >= room).to(tl.int32), axis=0) - 1
        room -= tl.sum(tl.where(o_bin > digit, b_count, 0), axis=0)
        kth |= digit.to(KEY) << shift
    written = 0
    equal = 0
    for p in range(0, count, BLOCK):
        o_c, b_key, m_c = _load_keys(bits_ptr, groups_ptr, p, k, width, INF, TOP, KEY, GROUP, BLOCK)
        b_equal = (m_c & (b_key == kth)).to(tl.int32)
        m_equal = (b_equal > 0) & (equal + tl.cumsum(b_equal, axis=0) <= room)
        m_take = (m_c & (b_key > kth)) | m_equal
        b_take = m_take.to(tl.int32)
        o_out = row * k + written + tl.cumsum(b_take, axis=0) - 1
        if values_ptr is not None:
            tl.store(values_ptr + o_out, b_key.to(values_ptr.dtype.element_ty), mask=m_take)
        tl.store(indices_ptr + o_out, o_c.to(indices_ptr.dtype.element_ty), mask=m_take)
        written += tl.sum(b_take, axis=0)
        equal += tl.sum(b_equal, axis=0)


def as_integers(tensor: Tensor) -> Tensor:
    """Return the bit patterns of `tensor` as integers of the same width, without a copy."""
    return tensor.view(_INTEGER[tensor.dtype.itemsize])


def key_constants(dtype: torch.dtype) -> dict[str, Any]:
    """Return the constants of `keys` for a dtype."""
    return {
        "INF": _INF[dtype],
        "TOP": (1 << (8 * dtype.itemsize - 1)) - 1,
        "KEY": tl.int64 if dtype == torch.float64 else tl.int32,
    }


def group_maxima(pre: Tensor) -> Tensor:
    """Return relu of the maximum of each group, [rows, groups]; NaN if the group has one."""
    rows, d_sae = pre.shape
    n_groups = triton.cdiv(d_sae, GROUP)
    maxima = pre.new_empty(rows, n_groups)
    block = min(triton.next_power_of_2(n_groups), 4 * _BLOCK // GROUP)
    _group_max_kernel[(rows, triton.cdiv(n_groups, block))](
        pre_ptr=as_integers(pre),
        maxima_ptr=as_integers(maxima),
        d_sae=d_sae,
        **key_constants(pre.dtype),
        GROUP=GROUP,
        BLOCK=block,
    )
    return maxima


def _select(
    pre: Tensor, groups: Tensor | None, k: int, values: Tensor | None, indices: Tensor
) -> None:
    """Run `_select_kernel` on the rows of pre [rows, width], into values and indices [rows, k]."""
    rows, width = pre.shape
    count = width if groups is None else k * GROUP
    _select_kernel[(rows,)](
        bits_ptr=as_integers(pre),
        groups_ptr=groups,
        values_ptr=None if values is None else as_integers(values),
        indices_ptr=indices,
        width=width,
        k=k,
        **key_constants(pre.dtype),
        DIGITS=pre.dtype.itemsize,
        GROUP=GROUP,
        BLOCK=min(triton.next_power_of_2(count), _BLOCK),
    )


def top_k(pre: Tensor, maxima: Tensor | None, k: int, values: Tensor, indices: Tensor) -> None:
    """Write relu of the k largest of each row of pre [rows, d_sae] to values and indices [rows, k].

    maxima is from `group_maxima`, or None to search complete rows. It must be None if k is not
    below the number of groups, when every group would be selected.
    """
    groups = None
    if maxima is not None:
        groups = torch.empty(len(pre), k, dtype=torch.int32, device=pre.device)
        _select(maxima, None, k, None, groups)
    _select(pre, groups, k, values, indices)


def largest(scores: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest scores of each row, int64 [rows, k]; scores >= 0."""
    scores = scores.contiguous()
    rows, d_sae = scores.shape
    values = scores.new_empty(rows, k)
    indices = torch.empty(rows, k, dtype=torch.int64, device=scores.device)
    if rows:
        with on_device_of(scores):
            maxima = group_maxima(scores) if k < triton.cdiv(d_sae, GROUP) else None
            top_k(scores, maxima, k, values, indices)
    return indices


def forward(
    centred: Tensor, W_rows: Tensor, b_enc: Tensor, k: int, *, product: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return values and int64 indices, both [batch, k].

    The first fused call of a shape waits for the device: see `gpu.encoder_matmul.encode`.

    Args:
        centred: x - b_dec, shape [batch, d_in].
        W_rows: Shape [d_sae, d_in].
        b_enc: Shape [d_sae].
        k: The number of slots per row.
        product: "fused", "vendor", or None for the choice of `choose_product` if it can run.

    Raises:
        ValueError: "fused" cannot take these inputs. See `gpu.encoder_matmul.fits`; it also needs
            k < d_sae / 32.
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    values = torch.empty(batch, k, dtype=centred.dtype, device=centred.device)
    indices = torch.empty(batch, k, dtype=torch.int64, device=centred.device)
    b_enc = b_enc.contiguous()
    grouped = k < triton.cdiv(d_sae, GROUP)
    can_fuse = grouped and fits(centred, W_rows, GROUP)
    if product == "fused" and not can_fuse:
        raise ValueError("product='fused' cannot take these inputs; use 'vendor' or None")
    product = product or choose_product(centred.shape[1], d_sae, centred.dtype)
    if product == "fused" and can_fuse:
        chunks = acts_chunks(centred, W_rows, b_enc, GROUP)
    else:
        chunks = (
            (rows, pre, group_maxima(pre) if grouped else None)
            for rows, pre in pre_acts_chunks(centred, W_rows, b_enc)
        )
    with on_device_of(centred):
        for rows, pre, maxima in chunks:
            top_k(pre, maxima, k, values[rows], indices[rows])
    return values, indices
