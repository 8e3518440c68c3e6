"""The result that every inference method returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_kernels.codes import Codes


@dataclass(frozen=True)
class InferenceResult:
    """Codes for a given dictionary, and how good they are.

    Attributes:
        codes: ragged, only the non-zero values, indices rising in each row.
        objective: what the method minimises, of each row, float64 [batch].
        gap: upper bound of objective - min objective of each row, float64 [batch]; None where the
            method does not solve a convex problem.
        iterations: the most that were spent on any row.
    """

    codes: Codes
    objective: Tensor
    gap: Tensor | None
    iterations: int


def sparse_rows(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [nnz], indices [nnz] and their number in each row [batch], of dense codes."""
    rows, indices = dense.nonzero(as_tuple=True)
    return dense[rows, indices], indices, torch.bincount(rows, minlength=len(dense))


def ragged_codes(parts: Sequence[tuple[Tensor, Tensor, Tensor]], d_sae: int) -> Codes:
    """One `Codes` of runs of rows, each as `sparse_rows` gave it."""
    values, indices, counts = (torch.cat(part) for part in zip(*parts, strict=True))
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Codes(values=values, indices=indices, d_sae=d_sae, offsets=offsets)
