"""Greedy pursuits for a given dictionary: atoms are picked one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.inference.problem import Problem, check_at_least_1
from sae.inference.result import InferenceResult
from sae.inference.supports import solve_normal


def matching_pursuit(
    x: Tensor, dictionary: Tensor, k: int, *, non_negative: bool = True, b: Tensor | None = None
) -> InferenceResult:
    """Return codes by matching pursuit (Mallat & Zhang 1993).

    In each of k steps, the atom with the largest product with the residual r is picked, and
    z_j += d_j . r, r -= (d_j . r) d_j. An atom can be picked again. Atoms are normalised for this
    and codes are scaled back, so that the reconstruction does not depend on norms. A row stops when
    no product exceeds rounding error, so fewer than k latents may fire. No gradient is recorded.

    Args:
        x: Shape [batch, d_in]; solved in float64 if x or the dictionary is float64, else float32.
        dictionary: Shape [d_sae, d_in].
        k: Number of steps, each one product of the encoder's shape.
        non_negative: Whether z >= 0, and only positive products count; with False, the atom with
            the largest |d_j . r| is picked.
        b: Shape [d_in], subtracted from x.

    Returns:
        The codes, and the objective 1/2 |x - b - z D|^2. There is no gap, because finding the best
        k-sparse codes is not a convex problem.

    Raises:
        UserError: The shapes do not fit, or k is below 1.
    """
    return _greedy(_matching, x, dictionary, k, non_negative, b)


def orthogonal_matching_pursuit(
    x: Tensor, dictionary: Tensor, k: int, *, non_negative: bool = True, b: Tensor | None = None
) -> InferenceResult:
    """Return codes by orthogonal matching pursuit (Pati et al. 1993).

    As in `matching_pursuit`, but after each pick the values of all picked atoms are fitted by least
    squares, or by non-negative least squares (Bruckstein et al. 2008). No atom is picked twice.
    Arguments, result and errors are those of `matching_pursuit`.
    """
    return _greedy(_orthogonal, x, dictionary, k, non_negative, b, stores_atoms=True)


def gradient_pursuit(
    x: Tensor, dictionary: Tensor, k: int, *, non_negative: bool = True, b: Tensor | None = None
) -> InferenceResult:
    """Return codes by gradient pursuit (Blumensath & Davies 2008, section III B).

    As in `matching_pursuit`, but after each pick the values of all picked atoms take one gradient
    step of the best length. Its quality is between those of the two other pursuits, and it solves
    no system of equations. With `non_negative`, values of 0 do not become negative, and a step ends
    where the first value reaches 0. Values still move when no atom is left to pick. Arguments,
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
    stores_atoms: bool = False,
) -> InferenceResult:
    """Solve for atoms of norm 1. `stores_atoms`: the method holds each row's picked atoms."""
    check_at_least_1(k=k)
    problem = Problem.of(x, dictionary, b)
    unit, norms = problem.with_unit_atoms()
    picks = min(k, len(norms)) if method is _orthogonal else k
    return problem.solve(
        lambda y, _: (method(y, unit.atoms, picks, non_negative) / norms, picks),
        width=picks * (picks + x.shape[1]) if stores_atoms else 0,
    )


def _best_atom(correlation: Tensor, y: Tensor, non_negative: bool) -> tuple[Tensor, Tensor]:
    """Return the best atom of each row [rows], and whether its product exceeds rounding error."""
    best, atom = (correlation if non_negative else correlation.abs()).max(1)
    return atom, best > 10 * torch.finfo(y.dtype).eps * y.norm(dim=1)


def _matching(y: Tensor, atoms: Tensor, k: int, non_negative: bool) -> Tensor:
    """Return dense codes [rows, d_sae] of y, for atoms of norm 1, by matching pursuit."""
    z, r = y.new_zeros(len(y), len(atoms)), y
    for _ in range(k):
        correlation = r @ atoms.t()
        atom, is_useful = _best_atom(correlation, y, non_negative)
        value = torch.where(is_useful, correlation.gather(1, atom[:, None])[:, 0], 0)[:, None]
        z.scatter_add_(1, atom[:, None], value)
        r = r - value * atoms[atom]
    return z


def _orthogonal(y: Tensor, atoms: Tensor, k: int, non_negative: bool) -> Tensor:
    """Return dense codes [rows, d_sae], for atoms of norm 1, by orthogonal matching pursuit."""
    rows = len(y)
    picked = torch.zeros(rows, k, dtype=torch.int64, device=y.device)
    free = torch.zeros(rows, k, dtype=torch.bool, device=y.device)
    picked_atoms, gram = y.new_zeros(rows, k, y.shape[1]), y.new_zeros(rows, k, k)
    right, values, r = y.new_zeros(rows, k), y.new_zeros(rows, k), y
    for pick in range(k):
        correlation = (r @ atoms.t()).scatter_(1, picked[:, :pick], 0)
        atom, is_useful = _best_atom(correlation, y, non_negative)
        picked[:, pick], free[:, pick] = atom, is_useful
        picked_atoms[:, pick] = torch.where(is_useful[:, None], atoms[atom], 0)
        so_far = slice(pick + 1)
        products = (picked_atoms[:, so_far] @ picked_atoms[:, pick, :, None])[..., 0]
        gram[:, pick, so_far] = gram[:, so_far, pick] = products
        right[:, pick] = torch.linalg.vecdot(picked_atoms[:, pick], y)
        values[:, so_far] = solve_normal(
            gram[:, so_far, so_far],
            right[:, so_far],
            free[:, so_far],
            non_negative=non_negative,
            guess=values[:, so_far] > 0 if pick else None,
        )
        r = y - (values[:, None, so_far] @ picked_atoms[:, so_far])[:, 0]
    return y.new_zeros(rows, len(atoms)).scatter_add_(1, picked, values)


def _gradient(y: Tensor, atoms: Tensor, k: int, non_negative: bool) -> Tensor:
    """Return dense codes [rows, d_sae] of y, for atoms of norm 1, by gradient pursuit."""
    rows = len(y)
    picked = torch.zeros(rows, k, dtype=torch.int64, device=y.device)
    free = torch.zeros(rows, k, dtype=torch.bool, device=y.device)
    values, r = y.new_zeros(rows, k), y
    for pick in range(k):
        correlation = r @ atoms.t()
        atom, is_useful = _best_atom(correlation, y, non_negative)
        picked_before = ((picked[:, :pick] == atom[:, None]) & free[:, :pick]).any(1)
        picked[:, pick], free[:, pick] = atom, is_useful & ~picked_before
        so_far = slice(pick + 1)
        atoms_so_far, value = picked[:, so_far], values[:, so_far]
        direction = torch.where(free[:, so_far], correlation.gather(1, atoms_so_far), 0)
        if non_negative:
            direction = torch.where((value <= 0) & (direction < 0), 0, direction)
        change = embedding_bag(atoms_so_far, atoms, per_sample_weights=direction, mode="sum")
        square = change.square().sum(1)
        step = torch.where(square > 0, torch.linalg.vecdot(r, change) / square, 0)
        if non_negative:
            room = torch.where(direction < 0, value / -direction, torch.inf)
            step = torch.minimum(step, room.amin(1))
        values[:, so_far] += step[:, None] * direction
        if non_negative:
            # A value that limits the step ends at 0 exactly. If rounding left it at 1e-18, it would
            # limit the next step to nothing; below 0 it would be an invalid code.
            values[:, so_far].masked_fill_(room <= step[:, None], 0).clamp_(min=0)
        r = r - step[:, None] * change
    return y.new_zeros(rows, len(atoms)).scatter_add_(1, picked, values)
