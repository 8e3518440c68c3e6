"""Least squares on given supports: one small system of normal equations per row, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.inference.problem import NUMBERS_PER_CHUNK


def least_squares(
    y: Tensor, atoms: Tensor, indices: Tensor, free: Tensor, *, non_negative: bool = True
) -> Tensor:
    """Return the values that minimise |y - sum over slots s of values[s] atoms[indices[s]]|^2.

    Rows are solved in chunks, because each needs its atoms and their Gram matrix in memory.

    Args:
        y: Shape [rows, d_in].
        atoms: Shape [d_sae, d_in], of norm 1 or 0.
        indices: Shape [rows, slots].
        free: Bool [rows, slots]; slots with False have the value 0.
        non_negative: Whether values are at least 0.

    Returns:
        Values [rows, slots].
    """
    slots = indices.shape[1]
    numbers = NUMBERS_PER_CHUNK.get(y.device.type, 2**20)
    size = max(1, numbers // max(slots * (atoms.shape[1] + slots), 1))
    values = y.new_zeros(indices.shape)
    if not slots:
        return values
    for start in range(0, len(y), size):
        chunk = slice(start, start + size)
        row_atoms = atoms[indices[chunk]]
        gram = row_atoms @ row_atoms.mT
        right = torch.linalg.vecdot(row_atoms, y[chunk, None])
        values[chunk] = solve_normal(gram, right, free[chunk], non_negative=non_negative)
    return values


def solve_normal(
    gram: Tensor,
    right: Tensor,
    free: Tensor,
    *,
    non_negative: bool = True,
    guess: Tensor | None = None,
) -> Tensor:
    """Return the v that minimise 1/2 v.G v - v.c with v = 0 outside `free`.

    With `non_negative`, v >= 0, by block principal pivoting (Kim & Park 2011) on all rows at once.
    Slots with the wrong sign (of the value in the passive set, of the gradient outside it) switch
    sets until there are none. A row that makes no progress three times switches only its last such
    slot, which guarantees that it ends. A few rounds are usual.

    A ridge at the level of rounding error makes the system solvable when atoms are linearly
    dependent; the result is then one of many solutions with the same residual.

    Args:
        gram: G, shape [rows, n, n], with a diagonal of 1 or 0.
        right: c, shape [rows, n].
        free: Bool [rows, n].
        non_negative: Whether v >= 0.
        guess: Initial passive set (slots above 0), bool [rows, n]; `free` by default.

    Returns:
        Shape [rows, n].
    """
    if not non_negative:
        return _solve_on_support(gram, right, free)
    n = right.shape[1]
    slack = 10 * n * torch.finfo(right.dtype).eps * right.abs().amax(1, keepdim=True)
    passive = free if guess is None else guess & free
    solution, rows = torch.zeros_like(right), torch.arange(len(right), device=right.device)
    fewest_wrong = rows.new_full((len(right),), n + 1)
    patience = torch.full_like(fewest_wrong, 3)
    positions = torch.arange(1, n + 1, device=right.device)
    for _ in range(
        10 * n + 10
    ):  # the bound is for degenerate rows, which may cycle because of rounding
        values = _solve_on_support(gram, right, passive)
        gradient = (gram @ values[..., None])[..., 0] - right
        wrong = torch.where(passive, values < -slack, gradient < -slack) & free
        count = wrong.sum(1)
        unfinished = count > 0
        solution[rows] = values.clamp(min=0)
        if not unfinished.any():
            break
        better = count < fewest_wrong
        fewest_wrong = torch.where(better, count, fewest_wrong)
        patience = torch.where(better, 3, patience - 1)
        last = positions == (wrong * positions).amax(1, keepdim=True)
        passive = passive ^ torch.where(patience[:, None] >= 0, wrong, wrong & last)
        state = (gram, right, free, slack, passive, rows, fewest_wrong, patience)
        gram, right, free, slack, passive, rows, fewest_wrong, patience = (
            part[unfinished] for part in state
        )
    return solution


def _solve_on_support(gram: Tensor, right: Tensor, support: Tensor) -> Tensor:
    """Return G^-1 c restricted to the slots in `support`, and 0 elsewhere."""
    n = right.shape[1]
    gram = torch.where(support[:, :, None] & support[:, None, :], gram, 0)
    ridge = 4 * n * torch.finfo(right.dtype).eps
    gram = gram + torch.diag_embed(torch.where(support, ridge, 1.0).to(gram.dtype))
    factor = torch.linalg.cholesky_ex(gram).L
    return torch.cholesky_solve(torch.where(support, right, 0)[..., None], factor)[..., 0]
