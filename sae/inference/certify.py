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
    """The codes as they are, with 1/2 |x - b - z D|^2 + penalty * |z|_1 of each row and, for a
    penalty above 0, how far that is from the least possible at most (`duality_gap`).

    x [batch, d_in], dictionary [d_sae, d_in], b [d_in]; codes at least 0 if `non_negative`. In runs
    of rows, in float64. Raises UserError for shapes that do not fit.
    """
    problem = Problem.of(x, dictionary, b)
    problem.check(codes)
    return problem.solve(
        lambda _, rows: (problem.dense(codes, rows), 0), penalty=penalty, non_negative=non_negative
    )
