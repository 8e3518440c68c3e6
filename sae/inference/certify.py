"""Certify the quality of codes from any source."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.inference.problem import Problem
from sae.inference.result import InferenceResult
from sae_kernels.codes import Codes


@torch.no_grad()
def certify(
    x: Tensor,
    dictionary: Tensor,
    codes: Codes,
    penalty: float = 0.0,
    *,
    non_negative: bool = True,
    b: Tensor | None = None,
) -> InferenceResult:
    """Return the codes unchanged, with their objective 1/2 |x - b - z D|^2 + penalty * |z|_1.

    With a penalty above 0, the result also has an upper bound on the distance of each row's
    objective from the optimum (`duality_gap`). Both are computed in float64.

    Args:
        x: Shape [batch, d_in].
        dictionary: Shape [d_sae, d_in].
        codes: The codes z; at least 0 if `non_negative`.
        penalty: Weight of |z|_1.
        non_negative: Whether the optimum is restricted to z >= 0.
        b: Shape [d_in], subtracted from x.

    Raises:
        UserError: The shapes do not fit.
    """
    problem = Problem.of(x, dictionary, b)
    problem.check(codes)
    return problem.solve(
        lambda _, rows: (problem.dense(codes, rows), 0), penalty=penalty, non_negative=non_negative
    )
