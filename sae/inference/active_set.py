"""Codes for dictionaries of many atoms of which a sample needs few: the lasso on an active set."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.inference.refit import strongest
from sae.inference.supports import solve_normal

# Atoms that join a row's active set in a round.
JOIN = 16
ROWS_PER_RUN = {"cpu": 256, "cuda": 2**13}


def active_set_codes(
    x: Tensor, D: Tensor, penalty: float, rounds: int, *, start: Tensor | None = None
) -> Tensor:
    """Codes z >= 0 [n, F] of 1/2 |x - z D|^2 + penalty |z|_1, from `start` or 0 on.

    In each round the 16 atoms that correlate most with a row's residual, and by more than the
    penalty, join those it uses, and the problem is solved exactly on both (`solve_normal`): so the
    objective never rises, and once no atom joins it is the least. A round costs one product with D,
    an iteration of FISTA two, and FISTA's step is set by the norm of all of D, not of the atoms in
    use. With 5,000 atoms in 125 dimensions and 40 of them in use, 4 rounds took .27 s for 1,024
    rows and end where 200 iterations do after 8 s (20 iterations: .8 s, objective a third higher).

    x [n, d]; D [F, d], rows of norm 1 or 0; start [n, F].
    """
    rows = ROWS_PER_RUN.get(x.device.type, 256)
    starts = [x.new_zeros(len(some), len(D)) for some in x.split(rows)]
    starts = starts if start is None else start.split(rows)
    parts = zip(x.split(rows), starts, strict=True)
    return torch.cat([_codes(some, D, penalty, rounds, z) for some, z in parts])


def _codes(x: Tensor, D: Tensor, penalty: float, rounds: int, z: Tensor) -> Tensor:
    indices, _ = strongest(z)
    values, residual = z.gather(1, indices), x - z @ D
    for _ in range(rounds):
        in_use = values > 0
        taken = torch.zeros_like(values).masked_fill_(in_use, -torch.inf)
        slope = (residual @ D.t()).scatter_add_(1, indices, taken)
        new = slope.topk(min(JOIN, len(D)), dim=1)
        both = torch.cat([indices, new.indices], 1)
        free = torch.cat([in_use, new.values > penalty], 1)
        atoms = D[both]
        right = torch.linalg.vecdot(atoms, x[:, None]) - penalty
        found = solve_normal(atoms @ atoms.mT, right, free)
        residual = x - (found[:, None] @ atoms)[:, 0]
        kept = found.topk(int((found > 0).sum(1).max()), dim=1)
        indices, values = both.gather(1, kept.indices), kept.values
    return torch.zeros_like(z).scatter_add_(1, indices, values)
