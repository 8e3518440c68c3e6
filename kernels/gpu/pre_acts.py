"""Pre-activations on the GPU: centred @ W_rows.T + b_enc, a bounded chunk of rows at a time.

centred [batch, d_in], W_rows [d_sae, d_in], b_enc [d_sae], one dtype. Products are summed in fp32
(float64 for float64) and rounded once, to the inputs' dtype. `cpu.pre_acts` is the
CPU half.
"""

# Triton's annotations describe code inside a kernel: a launch takes plain values for constexpr.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from sae_kernels.gpu.encoder_matmul import encode

CHUNK_BYTES = 2**27  # bytes of pre-activations
# W_enc is read once a chunk. In 16 bits the product of 184 rows takes as long as that (790 TFLOP/s,
# 4.3 TB/s); wider products are slower than that for any number of rows. The minimum of 256 rows
# applies above 262,144 latents and takes 0.5 GB at a million.
CHUNK_MIN_ROWS = 256
_ROW_TILE = 128  # rows of one tile of the product


def choose_product(d_in: int, d_sae: int, dtype: torch.dtype) -> str:
    """Return which product computes the pre-activations: "fused" or "vendor".

    "fused" is `gpu.encoder_matmul`. The vendor's product needs one more pass over the
    pre-activations, for the maxima, which takes 184 / d_in of the product (790 TFLOP/s, 4.3 TB/s).
    "fused" is faster if that exceeds what its product loses to the vendor's, assumed to be 10 %.
    This is a model; it has not been measured.
    """
    worth_it = dtype.itemsize == 2 and 184 / d_in > 0.10
    return "fused" if worth_it else "vendor"


def chunk_rows(batch: int, d_sae: int, dtype: torch.dtype) -> int:
    """Return the rows of a chunk: the batch spread evenly over the fewest chunks, in full tiles."""
    fit = CHUNK_BYTES // (d_sae * dtype.itemsize)
    fit = max(fit, CHUNK_MIN_ROWS if dtype.itemsize == 2 else 1)
    rows = triton.cdiv(batch, max(triton.cdiv(batch, fit), 1))
    return max(min(triton.cdiv(rows, _ROW_TILE) * _ROW_TILE, fit, batch), 1)


def pre_acts_chunks(
    centred: Tensor, W_rows: Tensor, b_enc: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, pre) by chunks of rows, from the vendor's product.

    pre [rows, d_sae] is centred[rows] @ W_rows.T + b_enc in the inputs' dtype, summed in fp32
    including the bias, without relu. It is in one buffer of at most CHUNK_BYTES (or CHUNK_MIN_ROWS
    rows, if that is more), which the next chunk overwrites. Call it under torch.no_grad().
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    size = chunk_rows(batch, d_sae, centred.dtype)
    buffer = torch.empty(size, d_sae, dtype=centred.dtype, device=centred.device)
    for start in range(0, batch, size):
        rows = slice(start, min(start + size, batch))
        pre = buffer[: rows.stop - start]
        yield rows, torch.addmm(b_enc, centred[rows], W_rows.t(), out=pre)


def acts_chunks(
    centred: Tensor, W_rows: Tensor, b_enc: Tensor, group: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (rows, acts, maxima) by chunks of rows, from the fused product (`gpu.encoder_matmul`).

    acts are relu(pre); maxima are those of each `group` columns. The next chunk overwrites both
    buffers.
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    size = chunk_rows(batch, d_sae, centred.dtype)
    acts = centred.new_empty(size, d_sae)
    maxima = centred.new_empty(size, d_sae // group)
    for start in range(0, batch, size):
        rows = slice(start, min(start + size, batch))
        chunk = slice(0, rows.stop - start)
        encode(centred[rows], W_rows, b_enc, acts[chunk], maxima[chunk], group)
        yield rows, acts[chunk], maxima[chunk]
