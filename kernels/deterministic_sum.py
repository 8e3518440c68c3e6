"""Sums that do not depend on the number of CPU threads."""

from __future__ import annotations

import torch
from torch import Tensor

# PyTorch splits a sum of more numbers than this between CPU threads, and the split decides how it
# rounds. Sums of rows are never split.
_UNSPLIT = 32_768
_ROW = 4096


def deterministic_sum(values: Tensor) -> Tensor:
    """Return the sum of all values, 0-d, with the same bits for any number of CPU threads."""
    if values.device.type != "cpu" or values.numel() <= _UNSPLIT:
        return values.sum()
    flat = values.flatten()
    rows = len(flat) // _ROW * _ROW
    return flat[:rows].view(-1, _ROW).sum(1).sum() + flat[rows:].sum()


def sum_of_squares(tensor: Tensor) -> Tensor:
    """Return the sum of squares of a matrix or vector, 0-d float64, the same for any thread count.

    The norms of the rows come first: this takes one pass and no copy, and rounds less than one norm
    of everything.
    """
    acc_dtype = torch.promote_types(tensor.dtype, torch.float32)
    if tensor.dim() > 1:
        tensor = torch.linalg.vector_norm(tensor, dim=1, dtype=acc_dtype)
    return deterministic_sum(tensor.double().square())
