"""Least squares on given supports: a small system of normal equations for every row, in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.inference.problem import NUMBERS_PER_RUN


def least_squares(
    y: Tensor, atoms: Tensor, indices: Tensor, free: Tensor, *, non_negative: bool = True
) -> Tensor:
    """argmin over values of |y - sum over slots s of values[s] atoms[indices[s]]|^2 for every row.

    y [rows, d_in]; atoms [d_sae, d_in], of norm 1 or 0; indices [rows, slots]; free [rows, slots],
    False where a slot stays 0. Returns values [rows, slots], at least 0 if `non_negative`. Rows are
    taken a few at a time where a row's atoms and their Gram matrix are large.
    """
    slots = indices.shape[1]
    numbers = NUMBERS_PER_RUN.get(y.device.type, 2**20)
    size = max(1, numbers // max(slots * (atoms.shape[1] + slots), 1))
    values = y.new_zeros(indices.shape)
    if not slots:
        return values
    for start in range(0, len(y), size):
        some = slice(start, start + size)
        chosen = atoms[indices[some]]
        gram = chosen @ chosen.mT
        right = torch.linalg.vecdot(chosen, y[some, None])
        values[some] = solve_normal(gram, right, free[some], non_negative=non_negative)
    return values


def solve_normal(
    gram: Tensor,
    right: Tensor,
    free: Tensor,
    *,
    non_negative: bool = True,
    guess: Tensor | None = None,
) -> Tensor:
    """argmin over v of 1/2 v.G v - v.c with v = 0 outside of `free`, and v >= 0 if `non_negative`.

    Non-negative: block principal pivoting (Kim & Park 2011), all rows at once. Slots with the wrong
    sign, of the value inside the passive set or of the gradient outside of it, change sides until
    there are none; a row that makes no progress three times in a row changes its last one only,
    which ends for certain. Few rounds are usual. Dependent atoms are told apart by a ridge at the
    level of rounding, so theirs is one of many answers, with the same residual.

    gram G [rows, n, n], its diagonal 1 or 0; right c and free [rows, n]; guess: which slots are
    above 0, [rows, n] bool, where to begin; all that are free when left out. Returns [rows, n].
    """
    if not non_negative:
        return _on(gram, right, free)
    n = right.shape[1]
    slack = 10 * n * torch.finfo(right.dtype).eps * right.abs().amax(1, keepdim=True)
    passive = free if guess is None else guess & free
    answer, rows = torch.zeros_like(right), torch.arange(len(right), device=right.device)
    fewest = rows.new_full((len(right),), n + 1)
    patience = torch.full_like(fewest, 3)
    places = torch.arange(1, n + 1, device=right.device)
    for _ in range(10 * n + 10):  # degenerate rows may turn in circles at the level of rounding
        values = _on(gram, right, passive)
        gradient = (gram @ values[..., None])[..., 0] - right
        wrong = torch.where(passive, values < -slack, gradient < -slack) & free
        count = wrong.sum(1)
        going = count > 0
        answer[rows] = values.clamp(min=0)
        if not going.any():
            break
        better = count < fewest
        fewest = torch.where(better, count, fewest)
        patience = torch.where(better, 3, patience - 1)
        last = places == (wrong * places).amax(1, keepdim=True)
        passive = passive ^ torch.where(patience[:, None] >= 0, wrong, wrong & last)
        kept = (gram, right, free, slack, passive, rows, fewest, patience)
        gram, right, free, slack, passive, rows, fewest, patience = (part[going] for part in kept)
    return answer


def _on(gram: Tensor, right: Tensor, some: Tensor) -> Tensor:
    """G^-1 c restricted to the slots in `some`, 0 elsewhere."""
    n = right.shape[1]
    gram = torch.where(some[:, :, None] & some[:, None, :], gram, 0)
    ridge = 4 * n * torch.finfo(right.dtype).eps
    gram = gram + torch.diag_embed(torch.where(some, ridge, 1.0).to(gram.dtype))
    factor = torch.linalg.cholesky_ex(gram).L
    return torch.cholesky_solve(torch.where(some, right, 0)[..., None], factor)[..., 0]
