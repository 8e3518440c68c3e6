"""Active-set solver of the lasso, for large dictionaries of which each sample uses few atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.inference.refit import strongest
from sae.inference.supports import solve_normal

# Atoms that join the active set of a row in a round.
ATOMS_PER_ROUND = 16
ROWS_PER_CHUNK = {"cpu": 256, "cuda": 2**13}


def active_set_codes(
    x: Tensor, D: Tensor, penalty: float, rounds: int, *, start: Tensor | None = None
) -> Tensor:
    """Return codes z >= 0 that minimise 1/2 |x - z D|^2 + penalty |z|_1.

    In each round, up to 16 atoms that correlate most with a row's residual, and by more than the
    penalty, join the atoms in use, and the problem is solved exactly on both (`solve_normal`).
    The objective therefore never rises, and it is optimal once no atom joins.

    A round costs one product with D; an iteration of FISTA costs two, and its step is limited by
    the norm of all of D, not of the atoms in use. With 5,000 atoms in 125 dimensions, 40 of them in
    use, 4 rounds took 0.27 s for 1,024 rows and reached the objective of 200 FISTA iterations
    (8 s). 20 iterations took 0.8 s, with an objective a third higher.

    Args:
        x: Shape [n, d].
        D: The dictionary [n_atoms, d], rows of norm 1 or 0.
        penalty: Weight of |z|_1.
        rounds: Number of rounds.
        start: Initial codes [n, n_atoms]; zeros by default.

    Returns:
        Dense codes [n, n_atoms].
    """
    rows = ROWS_PER_CHUNK.get(x.device.type, 256)
    chunks = x.split(rows)
    if start is None:
        starts = [x.new_zeros(len(chunk), len(D)) for chunk in chunks]
    else:
        starts = start.split(rows)
    return torch.cat(
        [
            _chunk_codes(chunk, D, penalty, rounds, z)
            for chunk, z in zip(chunks, starts, strict=True)
        ]
    )


def _chunk_codes(x: Tensor, D: Tensor, penalty: float, rounds: int, z: Tensor) -> Tensor:
    """Return the codes of one chunk of rows, from the initial codes z."""
    indices, _ = strongest(z)
    values, residual = z.gather(1, indices), x - z @ D
    for _ in range(rounds):
        in_use = values > 0
        exclude = torch.zeros_like(values).masked_fill_(in_use, -torch.inf)
        correlation = (residual @ D.t()).scatter_add_(1, indices, exclude)
        new = correlation.topk(min(ATOMS_PER_ROUND, len(D)), dim=1)
        both = torch.cat([indices, new.indices], 1)
        free = torch.cat([in_use, new.values > penalty], 1)
        atoms = D[both]
        right = torch.linalg.vecdot(atoms, x[:, None]) - penalty
        solution = solve_normal(atoms @ atoms.mT, right, free)
        residual = x - (solution[:, None] @ atoms)[:, 0]
        active = solution.topk(int((solution > 0).sum(1).max()), dim=1)
        indices, values = both.gather(1, active.indices), active.values
    return torch.zeros_like(z).scatter_add_(1, indices, values)
