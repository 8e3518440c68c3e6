"""Greedy codes for a given dictionary: atoms are picked one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.inference.problem import Problem, at_least
from sae.inference.result import InferenceResult
from sae.inference.supports import solve_normal


def matching_pursuit(
    x: Tensor, dictionary: Tensor, k: int, *, non_negative: bool = True, b: Tensor | None = None
) -> InferenceResult:
    """k times: the atom with the largest product with the residual r takes it (Mallat & Zhang
    1993): z_j += d_j . r, r -= (d_j . r) d_j.

    For atoms of norm 1; others are picked as if they had it, and their codes scaled back, so that
    the reconstruction does not depend on norms. An atom may be picked again. Non-negative: only
    positive products count. A row ends where none is left above rounding, so fewer than k may fire.
    No gradient is recorded.

    Args:
        x: [batch, d_in]; solved in float64 if x or the dictionary is float64, else in float32.
        dictionary: [d_sae, d_in].
        k: number of picks, one product of the encoder's shape each.
        non_negative: False allows negative codes: the largest |d_j . r| is picked.
        b: [d_in], subtracted from x.

    Returns:
        codes; the objective is 1/2 |x - b - z D|^2. The best k-sparse codes are no convex problem,
        so there is no gap.

    Raises:
        UserError: shapes that do not fit, or k below 1.
    """
    return _greedy(_matching, x, dictionary, k, non_negative, b)


def orthogonal_matching_pursuit(
    x: Tensor, dictionary: Tensor, k: int, *, non_negative: bool = True, b: Tensor | None = None
) -> InferenceResult:
    """As `matching_pursuit`, but after each pick the values of all picked atoms are fitted anew by
    least squares (Pati et al. 1993), or by non-negative least squares (Bruckstein et al. 2008).

    No atom is picked twice. Arguments, result and errors are those of `matching_pursuit`.
    """
    return _greedy(_orthogonal, x, dictionary, k, non_negative, b, keeps_atoms=True)


def gradient_pursuit(
    x: Tensor, dictionary: Tensor, k: int, *, non_negative: bool = True, b: Tensor | None = None
) -> InferenceResult:
    """As `matching_pursuit`, but after each pick the values of all picked atoms move along their
    gradient, as far as lowers the error most (Blumensath & Davies 2008, section III B).

    Between the two others in quality; needs no system of equations. Non-negative: an atom whose
    value is 0 is not moved below, and the step ends where the first value reaches 0; values still
    move where no atom is left to pick. Arguments,
    result and errors are those of `matching_pursuit`.
    """
    return _greedy(_gradient, x, dictionary, k, non_negative, b)


Method = Callable[[Tensor, Tensor, int, bool], Tensor]


@torch.no_grad()
def _greedy(
    method: Method,
    x: Tensor,
    dictionary: Tensor,
    k: int,
    non_negative: bool,
    b: Tensor | None,
    *,
    keeps_atoms: bool = False,
) -> InferenceResult:
    at_least(k=k)
    problem = Problem.of(x, dictionary, b)
    unit, norms = problem.with_unit_atoms()
    most = min(k, len(norms)) if method is _orthogonal else k
    return problem.solve(
        lambda y, _: (method(y, unit.atoms, most, non_negative) / norms, most),
        width=most * (most + x.shape[1]) if keeps_atoms else 0,
    )


def _strongest(correlation: Tensor, y: Tensor, non_negative: bool) -> tuple[Tensor, Tensor]:
    """The best atom of each row [rows], and whether its product is above rounding."""
    best, atom = (correlation if non_negative else correlation.abs()).max(1)
    return atom, best > 10 * torch.finfo(y.dtype).eps * y.norm(dim=1)


def _matching(y: Tensor, atoms: Tensor, k: int, non_negative: bool) -> Tensor:
    z, r = y.new_zeros(len(y), len(atoms)), y
    for _ in range(k):
        correlation = r @ atoms.t()
        atom, fits = _strongest(correlation, y, non_negative)
        value = torch.where(fits, correlation.gather(1, atom[:, None])[:, 0], 0)[:, None]
        z.scatter_add_(1, atom[:, None], value)
        r = r - value * atoms[atom]
    return z


def _orthogonal(y: Tensor, atoms: Tensor, k: int, non_negative: bool) -> Tensor:
    rows = len(y)
    picked = torch.zeros(rows, k, dtype=torch.int64, device=y.device)
    free = torch.zeros(rows, k, dtype=torch.bool, device=y.device)
    chosen, gram = y.new_zeros(rows, k, y.shape[1]), y.new_zeros(rows, k, k)
    right, values, r = y.new_zeros(rows, k), y.new_zeros(rows, k), y
    for pick in range(k):
        correlation = (r @ atoms.t()).scatter_(1, picked[:, :pick], 0)
        atom, fits = _strongest(correlation, y, non_negative)
        picked[:, pick], free[:, pick] = atom, fits
        chosen[:, pick] = torch.where(fits[:, None], atoms[atom], 0)
        so_far = slice(pick + 1)
        products = (chosen[:, so_far] @ chosen[:, pick, :, None])[..., 0]
        gram[:, pick, so_far] = gram[:, so_far, pick] = products
        right[:, pick] = torch.linalg.vecdot(chosen[:, pick], y)
        values[:, so_far] = solve_normal(
            gram[:, so_far, so_far],
            right[:, so_far],
            free[:, so_far],
            non_negative=non_negative,
            guess=values[:, so_far] > 0 if pick else None,
        )
        r = y - (values[:, None, so_far] @ chosen[:, so_far])[:, 0]
    return y.new_zeros(rows, len(atoms)).scatter_add_(1, picked, values)


def _gradient(y: Tensor, atoms: Tensor, k: int, non_negative: bool) -> Tensor:
    rows = len(y)
    picked = torch.zeros(rows, k, dtype=torch.int64, device=y.device)
    free = torch.zeros(rows, k, dtype=torch.bool, device=y.device)
    values, r = y.new_zeros(rows, k), y
    for pick in range(k):
        correlation = r @ atoms.t()
        atom, fits = _strongest(correlation, y, non_negative)
        known = ((picked[:, :pick] == atom[:, None]) & free[:, :pick]).any(1)
        picked[:, pick], free[:, pick] = atom, fits & ~known
        so_far = slice(pick + 1)
        where, value = picked[:, so_far], values[:, so_far]
        along = torch.where(free[:, so_far], correlation.gather(1, where), 0)
        if non_negative:
            along = torch.where((value <= 0) & (along < 0), 0, along)
        change = embedding_bag(where, atoms, per_sample_weights=along, mode="sum")
        square = change.square().sum(1)
        step = torch.where(square > 0, torch.linalg.vecdot(r, change) / square, 0)
        if non_negative:
            room = torch.where(along < 0, value / -along, torch.inf)
            step = torch.minimum(step, room.amin(1))
        values[:, so_far] += step[:, None] * along
        if non_negative:
            # A value that limits the step ends at 0 exactly. If rounding left it at 1e-18, it would
            # limit the next step to nothing; below 0 it would be an invalid code.
            values[:, so_far].masked_fill_(room <= step[:, None], 0).clamp_(min=0)
        r = r - step[:, None] * change
    return y.new_zeros(rows, len(atoms)).scatter_add_(1, picked, values)
