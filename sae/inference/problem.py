"""The sparse coding problem that all methods share, solved in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.errors import UserError
from sae.inference.certificate import duality_gap
from sae.inference.result import InferenceResult, ragged_codes, sparse_rows
from sae_kernels.codes import Codes

# Rows are solved in chunks with about this many dense codes, so that memory does not grow with the
# batch. On a CPU a chunk that fits the cache is twice as fast (2**20 against 2**22); a GPU needs
# larger ones. With fewer than MIN_ROWS rows, reading the dictionary costs more than the arithmetic.
NUMBERS_PER_CHUNK = {"cpu": 2**20, "cuda": 2**26}
MIN_ROWS = 128


@dataclass(frozen=True)
class Problem:
    """Rows to reconstruct and atoms to reconstruct them from, in the dtype of the solver.

    The dtype is float64 if x or the dictionary is float64, else float32.

    Args:
        target: y = x - b, shape [batch, d_in].
        atoms: The dictionary, shape [d_sae, d_in].
    """

    target: Tensor
    atoms: Tensor

    @classmethod
    def of(cls, x: Tensor, dictionary: Tensor, b: Tensor | None) -> Problem:
        """Return the problem of these tensors. Raises UserError if shapes do not fit."""
        if x.dim() != 2 or dictionary.dim() != 2 or x.shape[1] != dictionary.shape[1]:
            raise UserError(
                f"x {tuple(x.shape)} and dictionary {tuple(dictionary.shape)} do not fit; "
                f"give [batch, d_in] and [d_sae, d_in]"
            )
        if b is not None and b.shape != x.shape[1:]:
            raise UserError(f"b {tuple(b.shape)} does not fit x {tuple(x.shape)}; give [d_in]")
        dtype = torch.promote_types(torch.promote_types(x.dtype, dictionary.dtype), torch.float32)
        x, atoms = x.detach().to(dtype), dictionary.detach().to(dtype)
        return cls(x if b is None else x - b.detach().to(dtype), atoms)

    def with_unit_atoms(self) -> tuple[Problem, Tensor]:
        """Return the problem with atoms of norm 1, and the norms [d_sae].

        Atoms of zeros stay zeros, and their norm is given as 1. Codes of the new problem are the
        norms times codes of this one.
        """
        norms = self.atoms.norm(dim=1)
        norms = torch.where(norms > 0, norms, 1)
        return Problem(self.target, self.atoms / norms[:, None]), norms

    def dense(self, codes: Codes | None, rows: slice) -> Tensor:
        """Return the codes of a chunk of rows, dense [rows, d_sae]; zeros if `codes` is None."""
        if codes is None:
            return self.target.new_zeros(len(self.target[rows]), len(self.atoms))
        return codes.rows(rows).to_dense().to(self.target.dtype)

    def check(self, codes: Codes) -> None:
        """Raise UserError if `codes` has another number of rows or latents."""
        given, expected = (codes.batch, codes.d_sae), (len(self.target), len(self.atoms))
        if given != expected:
            raise UserError(
                f"codes have [batch, d_sae] = {given}, but x and the dictionary have {expected}"
            )

    def solve(
        self,
        method: Callable[[Tensor, slice], tuple[Tensor, int]],
        *,
        penalty: float = 0.0,
        non_negative: bool = True,
        width: int = 0,
    ) -> InferenceResult:
        """Run `method` on chunks of rows and concatenate the results.

        Args:
            method: Function of a chunk of y [rows, d_in] and the slice of its rows. It returns
                dense codes [rows, d_sae] and the number of iterations.
            penalty: Weight of |z|_1 in the objective. With 0 the result has no duality gap.
            non_negative: Whether the gap refers to the optimum over z >= 0.
            width: Numbers per row that the method holds in memory besides its d_sae codes.
        """
        parts, objectives, gaps, iterations = [], [], [], 0
        atoms = self.atoms.double()
        size = rows_per_chunk(self.target, len(atoms), width)
        for start in range(0, max(len(self.target), 1), size):
            y = self.target[start : start + size]
            z, chunk_iterations = method(y, slice(start, start + size))
            parts.append(sparse_rows(z))
            y, z = y.double(), z.double()
            if penalty:
                objective, gap = duality_gap(y, z, atoms, penalty, non_negative=non_negative)
                gaps.append(gap)
            else:
                objective = 0.5 * (y - z @ atoms).square().sum(1)
            objectives.append(objective)
            iterations = max(iterations, chunk_iterations)
        gap = torch.cat(gaps) if gaps else None
        codes = ragged_codes(parts, len(atoms))
        return InferenceResult(codes, torch.cat(objectives), gap, iterations)


def rows_per_chunk(like: Tensor, d_sae: int, width: int = 0) -> int:
    """Return the number of rows in a chunk; `width` is as in `Problem.solve`."""
    numbers = NUMBERS_PER_CHUNK.get(like.device.type, 2**20)
    rows = max(MIN_ROWS, numbers // max(d_sae, 1))
    return min(rows, max(1, 16 * numbers // width)) if width else rows


def check_at_least_1(**settings: int) -> None:
    """Raise UserError if a setting is below 1."""
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")


def check_positive(**settings: float) -> None:
    """Raise UserError if a setting is not above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise UserError(f"{name}={value} must be above 0")
