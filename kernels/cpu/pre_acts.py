"""Pre-activations on CPU: centred @ W_enc + b_enc, a bounded chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

# 8 MB of fp32 stay in the last-level cache between product and selection, and below the 32 MB from
# which glibc returns every freed block to the system, to be page-faulted in again. With fewer rows
# than 160 the product no longer hides that it reads W_enc once a chunk: 565 ms with 85 rows, 200
# with 170 (768 -> 24576). Beyond 256 rows half as much is as fast (288 -> 4608), and less to hold.
CHUNK_ELEMENTS = 2**21
CHUNK_MIN_ROWS = 160
CHUNK_GOOD_ROWS = 256


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(centred: Tensor, W_rows: Tensor, b_enc: Tensor) -> Tensor:
    """[rows, d_sae] from centred [rows, d_in] and W_rows [d_sae, d_in]."""
    if centred.dtype == torch.float32 and centred.device.type == "cpu" and _has_onednn():
        # 33 ms where MKL's takes 90 (2048 x 384 x 8192 in 256-row chunks, AVX-512 AMD, 2 cores).
        return torch.ops.mkldnn._linear_pointwise(centred, W_rows, b_enc, "none", [], "")
    return torch.addmm(b_enc, centred, W_rows.t())


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """left @ right by the faster of the two libraries; see `product`."""
    if left.dtype == torch.float32 and left.device.type == "cpu" and _has_onednn():
        rows, bias = right.t().contiguous(), right.new_zeros(right.shape[1])
        return torch.ops.mkldnn._linear_pointwise(left.contiguous(), rows, bias, "none", [], "")
    return left @ right


def less_matmul(whole: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """whole - left @ right, rounded once where the dtype is narrow."""
    if whole.dtype == torch.float32:
        return whole - matmul(left, right)
    return torch.addmm(whole, left, right, alpha=-1)


def pre_acts_chunks(
    centred: Tensor, W_rows: Tensor, b_enc: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """(rows, pre_acts [rows, d_sae]) from top to bottom; half precision is multiplied into fp32.

    Drop each (`del`) before asking for the next, so that one exists at a time.
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    if centred.dtype in (torch.bfloat16, torch.float16):
        W_rows, b_enc = W_rows.float(), b_enc.float()
    centred = centred.to(W_rows.dtype).contiguous()
    rows = min(CHUNK_ELEMENTS // d_sae, CHUNK_GOOD_ROWS)
    rows = max(CHUNK_ELEMENTS // 2 // d_sae, rows, CHUNK_MIN_ROWS)
    for start in range(0, batch, rows):
        chunk = slice(start, min(start + rows, batch))
        yield chunk, product(centred[chunk], W_rows, b_enc)
