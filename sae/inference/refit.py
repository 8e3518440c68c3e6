"""Least-squares values for codes with a given support, which undo the shrinkage of a penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.inference.fista import fista
from sae.inference.problem import Problem, check_at_least_1
from sae.inference.result import InferenceResult
from sae.inference.supports import least_squares
from sae_kernels.codes import Codes


@torch.no_grad()
def refit(
    x: Tensor,
    dictionary: Tensor,
    codes: Codes,
    k: int | Tensor | None = None,
    *,
    non_negative: bool = True,
    b: Tensor | None = None,
) -> InferenceResult:
    """Return the codes that minimise 1/2 |x - b - z D|^2 of each row on the support of `codes`.

    The solution is exact: least squares, or non-negative least squares by pivoting, which may set
    latents of the support to 0. No gradient is recorded.

    Args:
        x: Shape [batch, d_in]; solved in float64 if x or the dictionary is float64, else float32.
        dictionary: Shape [d_sae, d_in]; rows need not have norm 1.
        codes: Codes that are not 0 for the latents that may fire.
        k: The most latents per row, or one number for each row [batch]; those with the largest
            |z_j| |d_j| are used. All by default.
        non_negative: Whether z >= 0; False allows negative codes.
        b: Shape [d_in], subtracted from x.

    Returns:
        The codes, and the objective 1/2 |x - b - z D|^2. There is no gap.

    Raises:
        UserError: The shapes do not fit, or k is below 1.
    """
    problem = Problem.of(x, dictionary, b)
    problem.check(codes)
    if isinstance(k, int):
        check_at_least_1(k=k)
    unit, norms = problem.with_unit_atoms()

    def method(y: Tensor, rows: slice) -> tuple[Tensor, int]:
        strength = (problem.dense(codes, rows) * norms).abs()
        indices, free = strongest(strength, k[rows] if isinstance(k, Tensor) else k)
        values = least_squares(y, unit.atoms, indices, free, non_negative=non_negative)
        return torch.zeros_like(strength).scatter_(1, indices, values) / norms, 1

    return problem.solve(method)


def support_then_refit(
    x: Tensor,
    dictionary: Tensor,
    k: int | Tensor,
    penalty: float,
    *,
    non_negative: bool = True,
    b: Tensor | None = None,
    **settings,
) -> InferenceResult:
    """Return the codes of `fista`, refitted on the k latents with the largest |z_j| |d_j| per row.

    The penalty only has to rank latents well, because `refit` undoes its shrinkage. Arguments are
    those of `fista`; the result and the errors are those of `refit`.
    """
    codes = fista(x, dictionary, penalty, non_negative=non_negative, b=b, **settings).codes
    return refit(x, dictionary, codes, k, non_negative=non_negative, b=b)


def strongest(strength: Tensor, k: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the indices of the largest positive entries of each row.

    Args:
        strength: Shape [rows, d_sae].
        k: The most entries per row, or one number for each row [rows]; all by default.

    Returns:
        Indices [rows, slots], with as many slots as the fullest row needs, and a mask [rows, slots]
        of the slots in use.
    """
    counts = (strength > 0).sum(1)
    counts = counts if k is None else counts.clamp(max=k)
    top = strength.topk(int(counts.max()) if len(counts) else 0, dim=1)
    slots = torch.arange(top.indices.shape[1], device=top.indices.device)
    return top.indices, slots < counts[:, None]
