"""The two updates of dictionary learning: codes for given dictionaries, and the reverse.

All functions take R dictionaries at once, [R, F, d]: R small ones take no longer than one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Codes are computed in chunks of rows; a chunk of codes holds about this many numbers.
CODES_PER_CHUNK = {"cpu": 2**20, "cuda": 2**28}
# Number of atoms for which one matrix product computes the residual.
BLOCK = 64


def lasso_codes(
    x: Tensor,
    D: Tensor,
    penalty: float,
    iterations: int,
    *,
    non_negative: bool = True,
    start: Tensor | None = None,
) -> Tensor:
    """Return the codes z that minimize 1/2 |x - z D|^2 + penalty |z|_1, for R dictionaries.

    This is FISTA (Beck & Teboulle 2009) with a fixed number of steps. It neither stops early nor
    returns a duality gap; the solvers in `sae.inference` do.

    Args:
        x: Samples [n, d] or [R, n, d].
        D: Dictionaries [R, F, d].
        penalty: Weight of |z|_1.
        iterations: Number of FISTA steps.
        non_negative: Whether codes must be at least 0.
        start: Codes to start from [R, n, F]; 0 if None.

    Returns:
        Codes [R, n, F].
    """
    R, F, d = D.shape
    step = 1 / squared_norms(D)[:, None, None]
    x = x.expand(R, -1, -1)
    gram = None
    if 2 * d >= F:  # one product with [F, F] is then cheaper than two with [F, d]
        gram = torch.eye(F, dtype=D.dtype, device=D.device) - step * (D @ D.mT)
    rows = max(128, CODES_PER_CHUNK.get(x.device.type, 2**20) // (R * F))
    starts = [None] * math.ceil(x.shape[1] / rows) if start is None else start.split(rows, 1)
    chunks = []
    for x_chunk, z in zip(x.split(rows, 1), starts, strict=True):
        shift = (x_chunk @ D.mT) * step  # the part of a gradient step that does not depend on z
        if non_negative:
            shift -= penalty * step
        z = shift.new_zeros(R, x_chunk.shape[1], F) if z is None else z
        momentum_z, t = z, 1.0
        for _ in range(iterations):
            if gram is not None:
                new = torch.baddbmm(shift, momentum_z, gram)
            else:
                new = torch.baddbmm(momentum_z + shift, momentum_z @ D, D.mT * -step)
            if non_negative:
                new.clamp_(min=0)
            else:
                new -= new.clamp(-penalty * step, penalty * step)
            next_t = (1 + math.sqrt(1 + 4 * t * t)) / 2
            momentum_z = torch.lerp(z, new, 1 + (t - 1) / next_t)
            z, t = new, next_t
        chunks.append(z)
    return torch.cat(chunks, 1)


def squared_norms(D: Tensor) -> Tensor:
    """Return the squared spectral norm of each of D [R, F, d], as [R].

    It is rounded up, so that gradient steps of its inverse never diverge.
    """
    wide = D.double()
    gram = wide.mT @ wide if D.shape[2] <= D.shape[1] else wide @ wide.mT
    largest = torch.linalg.eigvalsh(gram)[:, -1]
    return (largest * (1 + 1e-5)).clamp_min(1e-30).to(D.dtype)


def update_atoms(D: Tensor, zz: Tensor, zx: Tensor) -> Tensor:
    """Return the dictionaries after one round of block-coordinate descent on |x - z D|^2.

    Each atom in turn moves to the minimum given the current value of all others,
    d_j <- d_j + (zx_j - zz_j D) / zz_jj, and is normalized. (If atoms are normalized only after the
    round, features are lost.) Atoms that no code uses do not change.

    Args:
        D: Dictionaries [R, F, d], with rows of norm 1.
        zz: Sums z^T z of the codes [R, F, F].
        zx: Sums z^T x [R, F, d].

    Returns:
        New dictionaries [R, F, d]; `D` does not change.
    """
    D = D.clone()
    energy = zz.diagonal(dim1=1, dim2=2)
    inverse = torch.where(energy > 0, 1 / energy.clamp_min(torch.finfo(D.dtype).tiny), 0)
    for first in range(0, D.shape[1], BLOCK):
        block = slice(first, min(first + BLOCK, D.shape[1]))
        residual = zx[:, block] - zz[:, block] @ D
        atoms, block_zz = D[:, block], zz[:, block, block]
        for j in range(atoms.shape[1]):
            old = atoms[:, j]
            new = normalize(torch.addcmul(old, residual[:, j], inverse[:, first + j, None]), dim=1)
            residual.baddbmm_(block_zz[:, :, j : j + 1], (old - new)[:, None])
            atoms[:, j] = new
    return D


def add_products(sums: Tensor, z: Tensor) -> None:
    """Add z^T z to `sums` [R, F, F] in place, for codes z [R, n, F].

    On a CPU, sparse codes are multiplied pair by pair.
    """
    for total, codes in zip(sums, z, strict=True):
        n, F = codes.shape
        counts = (codes != 0).sum(1)
        pairs = int(counts.square().sum()) if codes.device.type == "cpu" else n * F * F
        if pairs * 256 > n * F * F:  # a pair takes as long as 256 products of the dense matmul
            total.addmm_(codes.t(), codes)
            continue
        rows, latents = codes.nonzero(as_tuple=True)
        values, row_counts = codes[rows, latents], counts[rows]
        left = torch.arange(len(rows)).repeat_interleave(row_counts)
        # A nonzero is paired with all nonzeros of its row, which start at counts.cumsum - counts.
        start = (counts.cumsum(0) - counts)[rows] - (row_counts.cumsum(0) - row_counts)
        right = torch.arange(pairs) + start[left]
        flat_indices = latents[left] * F + latents[right]
        total.view(-1).index_add_(0, flat_indices, values[left] * values[right])
