"""Gradients of matrices with one row per latent, a chunk of rows at a time, on CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_kernels.cpu import spmm as cpu_spmm
from sae_kernels.deterministic_sum import sum_of_squares
from sae_kernels.row_grads import RowGrads

# 1 MB of fp32 of each tensor, so that all passes over a chunk stay in the cores' caches. A step at
# 768 -> 24,576 takes 389 ms with 1 MB and 451 with 4 MB; at 288 -> 4,608 both take the same.
CHUNK_ELEMENTS = 2**18


def chunk_rows(width: int) -> int:
    """Return how many rows of this width are processed at once."""
    return max(CHUNK_ELEMENTS // max(width, 1), 1)


def gradient_chunks(
    shape: torch.Size, dense: Tensor | None, parts: RowGrads | None
) -> Iterator[tuple[slice, Tensor, bool]]:
    """Yield (rows, the gradient of those rows, whether it may be overwritten), top to bottom.

    Args:
        shape: (d_sae, d).
        dense: The dense part of the gradient, or None.
        parts: The gradient in parts, or None. At least one of the two is needed.
    """
    count, width = shape
    rows = chunk_rows(width)
    for start in range(0, count, rows):
        chunk = slice(start, min(start + rows, count))
        if parts:
            yield chunk, _sum_parts(chunk, width, dense, parts), True
        else:
            assert dense is not None, "a gradient must be dense, in parts, or both"
            yield chunk, dense[chunk], False


def _sum_parts(chunk: slice, width: int, dense: Tensor | None, parts: RowGrads) -> Tensor:
    """Return the gradient of the rows in `chunk`: the dense part plus all other parts."""
    grad = None
    for pairs, weights, table in parts.pair_parts:
        rows = cpu_spmm.sum_tokens(pairs, weights, table, chunk)
        grad = rows if grad is None else grad.add_(rows)
    for latents, rows in parts.row_parts:
        if grad is None:
            grad = rows.new_zeros(chunk.stop - chunk.start, width)
        first, last = torch.searchsorted(latents, torch.tensor([chunk.start, chunk.stop])).tolist()
        grad.index_add_(0, latents[first:last] - chunk.start, rows[first:last])
    assert grad is not None, "parts must not be empty"
    return grad if dense is None else grad.add_(dense[chunk])


def square_norm(shape: torch.Size, dense: Tensor | None, parts: RowGrads | None) -> Tensor:
    """Return the squared Frobenius norm of the gradient: 0-d, float64."""
    total = torch.zeros((), dtype=torch.float64)
    for _, grad, _ in gradient_chunks(shape, dense, parts):
        total += sum_of_squares(grad)
    return total
