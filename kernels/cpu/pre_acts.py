"""Pre-activations on CPU: centred @ W_enc + b_enc, a bounded chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_kernels.matmul import linear

# 8 MB of fp32 stay in the last-level cache between the product and the selection, and are below the
# 32 MB from which glibc returns every freed block to the system, which then has to be page-faulted
# in again. Below 160 rows the time of a product is that of reading W_enc once a chunk: 565 ms with
# 85 rows, 200 with 170 (768 -> 24576). Above 256 rows half as much is as fast (288 -> 4608) and
# takes less memory.
CHUNK_ELEMENTS = 2**21
CHUNK_MIN_ROWS = 160
CHUNK_GOOD_ROWS = 256


def pre_acts_chunks(
    centred: Tensor, W_rows: Tensor, b_enc: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, pre_acts [rows, d_sae]), top to bottom; 16-bit inputs are multiplied in fp32.

    Delete each chunk (`del`) before asking for the next, so that only one exists at a time.
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    if centred.dtype in (torch.bfloat16, torch.float16):
        W_rows, b_enc = W_rows.float(), b_enc.float()
    centred = centred.to(W_rows.dtype).contiguous()
    rows = min(CHUNK_ELEMENTS // d_sae, CHUNK_GOOD_ROWS)
    rows = max(CHUNK_ELEMENTS // 2 // d_sae, rows, CHUNK_MIN_ROWS)
    for start in range(0, batch, rows):
        chunk = slice(start, min(start + rows, batch))
        yield chunk, linear(centred[chunk], W_rows, b_enc)
