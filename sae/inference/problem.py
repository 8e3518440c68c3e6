"""The problem of all methods: rows to explain, atoms to explain them with, and chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.errors import UserError
from sae.inference.certificate import duality_gap
from sae.inference.result import InferenceResult, ragged_codes, sparse_rows
from sae_kernels.codes import Codes

# Rows are solved in runs whose dense codes hold about this many numbers, so memory does not grow
# with the batch. On a CPU a run that fits the cache is twice as fast (2**20 against 2**22); a GPU
# wants its whole width busy. Below LEAST_ROWS, reading the dictionary costs more than the work.
NUMBERS_PER_RUN = {"cpu": 2**20, "cuda": 2**26}
LEAST_ROWS = 128


@dataclass(frozen=True)
class Problem:
    """Rows y = x - b [batch, d_in] and atoms [d_sae, d_in], both in the dtype that is solved in:
    float64 if x or the dictionary is, else float32."""

    target: Tensor
    atoms: Tensor

    @classmethod
    def of(cls, x: Tensor, dictionary: Tensor, b: Tensor | None) -> Problem:
        """Raises UserError for shapes that do not fit."""
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
        """The same with atoms of norm 1 (zeros stay), and the norms [d_sae], 1 where they were 0:
        codes for the one are norms times codes for the other."""
        norms = self.atoms.norm(dim=1)
        norms = torch.where(norms > 0, norms, 1)
        return Problem(self.target, self.atoms / norms[:, None]), norms

    def dense(self, codes: Codes | None, rows: slice) -> Tensor:
        """Codes of a run of rows, dense [rows, d_sae]; zeros where there are none yet."""
        if codes is None:
            return self.target.new_zeros(len(self.target[rows]), len(self.atoms))
        return codes.rows(rows).to_dense().to(self.target.dtype)

    def check(self, codes: Codes) -> None:
        """Raises UserError for codes of another number of rows or latents."""
        given, wanted = (codes.batch, codes.d_sae), (len(self.target), len(self.atoms))
        if given != wanted:
            raise UserError(f"codes [batch, d_sae] are {given} where {wanted} are solved for")

    def solve(
        self,
        method: Callable[[Tensor, slice], tuple[Tensor, int]],
        *,
        penalty: float = 0.0,
        non_negative: bool = True,
        width: int = 0,
    ) -> InferenceResult:
        """Run `method` on runs of rows and put its answers together.

        Args:
            method: from a run of y [rows, d_in], and which rows they are, to dense codes
                [rows, d_sae] and the iterations spent.
            penalty: above 0, what is minimised is 1/2 |y - z D|^2 + penalty * |z|_1, with a gap;
                at 0 it is 1/2 |y - z D|^2, without.
            width: numbers that the method keeps of a row beside d_sae.
        """
        parts, objectives, gaps, spent = [], [], [], 0
        atoms = self.atoms.double()
        size = rows_per_run(self.target, len(atoms), width)
        for start in range(0, max(len(self.target), 1), size):
            y = self.target[start : start + size]
            z, used = method(y, slice(start, start + size))
            parts.append(sparse_rows(z))
            y, z = y.double(), z.double()
            if penalty:
                objective, gap = duality_gap(y, z, atoms, penalty, non_negative=non_negative)
                gaps.append(gap)
            else:
                objective = 0.5 * (y - z @ atoms).square().sum(1)
            objectives.append(objective)
            spent = max(spent, used)
        gap = torch.cat(gaps) if gaps else None
        return InferenceResult(ragged_codes(parts, len(atoms)), torch.cat(objectives), gap, spent)


def rows_per_run(like: Tensor, d_sae: int, width: int = 0) -> int:
    """Return how many rows fit at once, with `width` numbers each beside dense codes."""
    numbers = NUMBERS_PER_RUN.get(like.device.type, 2**20)
    rows = max(LEAST_ROWS, numbers // max(d_sae, 1))
    return min(rows, max(1, 16 * numbers // width)) if width else rows


def at_least(**settings: int) -> None:
    """Raises UserError for a setting below 1."""
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")


def positive(**settings: float) -> None:
    """Raises UserError for a setting that is not above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise UserError(f"{name}={value} must be above 0")
