"""Improve given codes at the same sparsity by exchanging latents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.inference.problem import Problem, check_at_least_1
from sae.inference.refit import strongest
from sae.inference.result import InferenceResult
from sae.inference.supports import least_squares
from sae_kernels.codes import Codes

# Candidates of a step, as a share of a row's latents. Of 1/8, 1/4, 1/2 and 1, a quarter reaches the
# lowest error on a transformer's activations, and costs little more than one candidate.
CANDIDATE_SHARE = 0.25
# A step must lower the error of a row by this share to be accepted; it is above rounding error.
MIN_IMPROVEMENT = 1e-4


@torch.no_grad()
def refine(
    x: Tensor,
    dictionary: Tensor,
    codes: Codes,
    steps: int,
    *,
    non_negative: bool = True,
    b: Tensor | None = None,
) -> InferenceResult:
    """Return codes with a lower 1/2 |x - b - z D|^2 and no more latents per row than `codes`.

    This is subspace pursuit (Dai & Milenkovic 2009) with a warm start and fewer candidates. First
    the values of the given latents are fitted (`refit`). In each step, the latents that correlate
    best with the residual are added (a quarter as many as are active), all are fitted together, and
    the largest are fitted again without the others. A row accepts a step only if its error falls.
    Otherwise it halves the number of candidates, and stops when one candidate has failed. No
    gradient is recorded.

    Args:
        x: Shape [batch, d_in]; solved in float64 if x or the dictionary is float64, else float32.
        dictionary: Shape [d_sae, d_in]; rows need not have norm 1.
        codes: The initial codes.
        steps: Upper bound on the steps. A step costs a product of the encoder's shape and two small
            systems of equations per row.
        non_negative: Whether z >= 0; False allows negative codes.
        b: Shape [d_in], subtracted from x.

    Returns:
        The codes, and the objective 1/2 |x - b - z D|^2. It is not above that of `codes` in any
        row, unless `codes` has negative values and `non_negative` is True. There is no gap.

    Raises:
        UserError: The shapes do not fit, or steps is below 1.
    """
    problem = Problem.of(x, dictionary, b)
    problem.check(codes)
    check_at_least_1(steps=steps)
    unit, norms = problem.with_unit_atoms()

    def method(y: Tensor, rows: slice) -> tuple[Tensor, int]:
        z, iterations = _exchange_latents(
            y, unit.atoms, problem.dense(codes, rows) * norms, steps, non_negative
        )
        return z / norms, iterations

    return problem.solve(method)


def _exchange_latents(
    y: Tensor, atoms: Tensor, start: Tensor, steps: int, non_negative: bool
) -> tuple[Tensor, int]:
    """Return dense codes [rows, d_sae] of y [rows, d_in] and the number of steps.

    `start` holds the initial codes; atoms have norm 1 or 0.
    """

    def fit(indices: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = least_squares(y, atoms, indices, free, non_negative=non_negative)
        residual = y - embedding_bag(indices, atoms, per_sample_weights=values, mode="sum")
        return values, residual, residual.square().sum(1)

    indices, free = strongest(start.abs())
    solved, rows = torch.zeros_like(start), torch.arange(len(y), device=y.device)
    if not indices.shape[1]:
        return solved, 0
    slots = torch.arange(indices.shape[1], device=y.device)
    room = free.sum(1, keepdim=True)
    candidates = (room * CANDIDATE_SHARE).ceil().long()
    values, residual, error = fit(indices, free)
    solved.scatter_(1, indices, values)
    for step in range(steps):
        unfinished = candidates[:, 0] > 0
        if not unfinished.any():
            return solved, step
        state = (rows, y, indices, values, residual, error, room, candidates)
        rows, y, indices, values, residual, error, room, candidates = (t[unfinished] for t in state)
        max_candidates = int(candidates.max())
        active = values != 0
        # It is 0, up to rounding, for active latents, because their values have been fitted.
        correlation = residual @ atoms.t()
        correlation = correlation if non_negative else correlation.abs_()
        new = correlation.topk(max_candidates, dim=1)
        joins = (new.values > 0) & (torch.arange(max_candidates, device=y.device) < candidates)
        both, free = torch.cat([indices, new.indices], 1), torch.cat([active, joins], 1)
        together = least_squares(y, atoms, both, free, non_negative=non_negative)
        largest = together.abs().topk(len(slots), dim=1)
        new_indices = both.gather(1, largest.indices)
        new_values, new_residual, new_error = fit(
            new_indices, (largest.values > 0) & (slots < room)
        )
        better = (new_error < (1 - MIN_IMPROVEMENT) * error)[:, None]
        indices, values = (
            torch.where(better, new_indices, indices),
            torch.where(better, new_values, values),
        )
        residual = torch.where(better, new_residual, residual)
        error = torch.where(better[:, 0], new_error, error)
        solved[rows] = torch.zeros_like(correlation).scatter_add_(1, indices, values)
        candidates = torch.where(better, candidates, candidates // 2)
    return solved, steps
