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
        codes: Ragged codes of the non-zero values, with increasing indices in each row.
        objective: The value that the method minimises, for each row, float64 [batch].
        gap: Upper bound on the distance of each row's objective from its minimum, float64 [batch];
            None if the method does not solve a convex problem.
        iterations: The largest number of iterations of any row.
    """

    codes: Codes
    objective: Tensor
    gap: Tensor | None
    iterations: int


def sparse_rows(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the non-zero values [nnz] of dense codes, their indices [nnz] and counts [batch]."""
    rows, indices = dense.nonzero(as_tuple=True)
    return dense[rows, indices], indices, torch.bincount(rows, minlength=len(dense))


def ragged_codes(parts: Sequence[tuple[Tensor, Tensor, Tensor]], d_sae: int) -> Codes:
    """Return the codes of consecutive chunks of rows, each given as the result of `sparse_rows`."""
    values, indices, counts = (torch.cat(part) for part in zip(*parts, strict=True))
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Codes(values=values, indices=indices, d_sae=d_sae, offsets=offsets)
