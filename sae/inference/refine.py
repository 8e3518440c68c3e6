"""Better codes as sparse as those given: each row exchanges the latents that serve it least."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.inference.problem import Problem, at_least
from sae.inference.refit import strongest
from sae.inference.result import InferenceResult
from sae.inference.supports import least_squares
from sae_kernels.codes import Codes

# Of a row's latents, how many are up for exchange in a step. Measured on 1/8, 1/4, 1/2 and 1: a
# quarter ends lowest on a transformer's activations, and costs little more than one latent does.
EXCHANGED = 0.25
# The share of its error that a step must take off a row, or it counts as none: above rounding.
LEAST_GAIN = 1e-4


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
    """Lower 1/2 |x - b - z D|^2 of every row with no more latents than `codes` gave it.

    First the values of the given latents are fitted (`refit`). Then, in each step, the quarter as
    many that correlate best with the residual join them, all are fitted together, the largest are
    kept, and fitted alone: subspace pursuit (Dai & Milenkovic 2009) with a warm start and fewer
    candidates. A row takes a step only if its error falls; if not, it tries half as many candidates
    the next time, and is done after one. No gradient is recorded.

    Args:
        x: [batch, d_in]; solved in float64 if x or the dictionary is float64, else in float32.
        dictionary: [d_sae, d_in]; rows need not have norm 1.
        codes: where to begin.
        steps: the most that are spent on a row. One costs a product of the encoder's shape and two
            small systems of equations.
        non_negative: False allows negative codes.
        b: [d_in], subtracted from x.

    Returns:
        codes; the objective is 1/2 |x - b - z D|^2, in no row above that of `codes`, as long as
        these are non-negative or may be negative; there is no gap.

    Raises:
        UserError: shapes that do not fit, or fewer than 1 step.
    """
    problem = Problem.of(x, dictionary, b)
    problem.check(codes)
    at_least(steps=steps)
    unit, norms = problem.with_unit_atoms()

    def method(y: Tensor, rows: slice) -> tuple[Tensor, int]:
        z, spent = _exchanged(
            y, unit.atoms, problem.dense(codes, rows) * norms, steps, non_negative
        )
        return z / norms, spent

    return problem.solve(method)


def _exchanged(
    y: Tensor, atoms: Tensor, start: Tensor, steps: int, non_negative: bool
) -> tuple[Tensor, int]:
    """Dense codes [rows, d_sae] of y [rows, d_in] from `start` on, for atoms of norm 1 or 0."""

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
    candidates = (room * EXCHANGED).ceil().long()
    values, residual, error = fit(indices, free)
    solved.scatter_(1, indices, values)
    for spent in range(steps):
        going = candidates[:, 0] > 0
        if not going.any():
            return solved, spent
        kept = (rows, y, indices, values, residual, error, room, candidates)
        rows, y, indices, values, residual, error, room, candidates = (t[going] for t in kept)
        most = int(candidates.max())
        fires = values != 0
        slope = residual @ atoms.t()  # 0, up to rounding, for what fires: it has been fitted
        slope = slope if non_negative else slope.abs_()
        new = slope.topk(most, dim=1)
        joins = (new.values > 0) & (torch.arange(most, device=y.device) < candidates)
        both, free = torch.cat([indices, new.indices], 1), torch.cat([fires, joins], 1)
        together = least_squares(y, atoms, both, free, non_negative=non_negative)
        largest = together.abs().topk(len(slots), dim=1)
        tried = both.gather(1, largest.indices)
        fitted, left, less = fit(tried, (largest.values > 0) & (slots < room))
        better = (less < (1 - LEAST_GAIN) * error)[:, None]
        indices, values = torch.where(better, tried, indices), torch.where(better, fitted, values)
        residual = torch.where(better, left, residual)
        error = torch.where(better[:, 0], less, error)
        solved[rows] = torch.zeros_like(slope).scatter_add_(1, indices, values)
        candidates = torch.where(better, candidates, candidates // 2)
    return solved, steps
