"""A sum that does not depend on how many threads there are."""

from __future__ import annotations

import torch
from torch import Tensor

# torch splits a sum of more numbers than this between the threads of a CPU, and where it splits
# decides how it rounds. Sums of rows are never split.
_WHOLE = 32_768
_ROW = 4096


def deterministic_sum(values: Tensor) -> Tensor:
    """The sum of all of `values`, of any shape: 0-d, the same bits on any number of CPU threads."""
    if values.device.type != "cpu" or values.numel() <= _WHOLE:
        return values.sum()
    flat = values.flatten()
    rows = len(flat) // _ROW * _ROW
    return flat[:rows].view(-1, _ROW).sum(1).sum() + flat[rows:].sum()


def square_norm_of(matrix: Tensor) -> Tensor:
    """|matrix|^2 of a matrix or vector: 0-d, float64, likewise. Norms of rows first, which takes
    one pass and no copy, and rounds less than one norm of everything."""
    wide = torch.promote_types(matrix.dtype, torch.float32)
    if matrix.dim() > 1:
        matrix = torch.linalg.vector_norm(matrix, dim=1, dtype=wide)
    return deterministic_sum(matrix.double().square())
