"""Values by least squares once the support is chosen: what a penalty shrank is put right."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.inference.fista import fista
from sae.inference.problem import Problem, at_least
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
    """argmin over z of 1/2 |x - b - z D|^2 among codes with the support of `codes`, for every row.

    Exact: least squares, or non-negative least squares by pivoting, which may leave latents out.
    No gradient is recorded.

    Args:
        x: [batch, d_in]; solved in float64 if x or the dictionary is float64, else in float32.
        dictionary: [d_sae, d_in]; rows need not have norm 1.
        codes: which latents may fire: those that are not 0 here.
        k: of these the most that a row keeps, or [batch] one number for each: those that write
            most, by |z_j| |d_j|; all when left out.
        non_negative: False allows negative codes.
        b: [d_in], subtracted from x.

    Returns:
        codes; the objective is 1/2 |x - b - z D|^2, and there is no gap.

    Raises:
        UserError: shapes that do not fit, or a k below 1.
    """
    problem = Problem.of(x, dictionary, b)
    problem.check(codes)
    if isinstance(k, int):
        at_least(k=k)
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
    """`fista`, then `refit` of the k latents of each row that write most.

    The penalty only has to rank latents well, since its shrinkage is undone. Arguments are those of
    `fista`, result and errors those of `refit`.
    """
    codes = fista(x, dictionary, penalty, non_negative=non_negative, b=b, **settings).codes
    return refit(x, dictionary, codes, k, non_negative=non_negative, b=b)


def strongest(strength: Tensor, k: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the positions of the positive entries of strength [rows, d_sae], at most k per row:
    indices [rows, slots], and which slots are one, with as many slots as the fullest row needs.
    k: also [rows], one number for each."""
    counts = (strength > 0).sum(1)
    counts = counts if k is None else counts.clamp(max=k)
    top = strength.topk(int(counts.max()) if len(counts) else 0, dim=1)
    return top.indices, torch.arange(top.indices.shape[1], device=top.indices.device) < counts[
        :, None
    ]
