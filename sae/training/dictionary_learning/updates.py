"""The two steps of dictionary learning: codes for dictionaries, and dictionaries for codes.

Everything is for R dictionaries at once, [R, F, d]: small ones take no longer together than alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Codes are computed for so many rows at a time that they hold about this many numbers.
CODES_PER_RUN = {"cpu": 2**20, "cuda": 2**28}
# Atoms whose part of the residual is brought up to date by one product.
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
    """Codes z [R, n, F] of 1/2 |x - z D|^2 + penalty |z|_1, for R dictionaries at once.

    `iterations` of FISTA (Beck & Teboulle 2009), from `start` or 0. x [n, d] or [R, n, d],
    D [R, F, d]. There is no certificate and no early end: `sae.inference` has those.
    """
    R, F, d = D.shape
    step = 1 / squared_norms(D)[:, None, None]
    x = x.expand(R, -1, -1)
    gram = None
    if 2 * d >= F:  # one product with [F, F] in place of two with [F, d]
        gram = torch.eye(F, dtype=D.dtype, device=D.device) - step * (D @ D.mT)
    rows = max(128, CODES_PER_RUN.get(x.device.type, 2**20) // (R * F))
    starts = [None] * math.ceil(x.shape[1] / rows) if start is None else start.split(rows, 1)
    parts = []
    for some, z in zip(x.split(rows, 1), starts, strict=True):
        toward = (some @ D.mT) * step
        if non_negative:
            toward -= penalty * step
        z = toward.new_zeros(R, some.shape[1], F) if z is None else z
        ahead, t = z, 1.0
        for _ in range(iterations):
            if gram is not None:
                new = torch.baddbmm(toward, ahead, gram)
            else:
                new = torch.baddbmm(ahead + toward, ahead @ D, D.mT * -step)
            if non_negative:
                new.clamp_(min=0)
            else:
                new -= new.clamp(-penalty * step, penalty * step)
            following = (1 + math.sqrt(1 + 4 * t * t)) / 2
            ahead = torch.lerp(z, new, 1 + (t - 1) / following)
            z, t = new, following
        parts.append(z)
    return torch.cat(parts, 1)


def squared_norms(D: Tensor) -> Tensor:
    """|D|_2^2 of each of D [R, F, d], rounded up: a step of its inverse never diverges."""
    wide = D.double()
    gram = wide.mT @ wide if D.shape[2] <= D.shape[1] else wide @ wide.mT
    largest = torch.linalg.eigvalsh(gram)[:, -1]
    return (largest * (1 + 1e-5)).clamp_min(1e-30).to(D.dtype)


def sweep(D: Tensor, zz: Tensor, zx: Tensor) -> Tensor:
    """D [R, F, d] after one round of block-coordinate descent on |x - z D|^2, given the sums
    zz = z^T z [R, F, F] and zx = z^T x [R, F, d].

    In turn, each atom goes to the minimum given all others as they then are, and back to norm 1:
    d_j <- d_j + (zx_j - zz_j D) / zz_jj. (Normalising after the round instead loses features.)
    Atoms that no code uses stay.
    """
    D = D.clone()
    energy = zz.diagonal(dim1=1, dim2=2)
    inverse = torch.where(energy > 0, 1 / energy.clamp_min(torch.finfo(D.dtype).tiny), 0)
    for first in range(0, D.shape[1], BLOCK):
        block = slice(first, min(first + BLOCK, D.shape[1]))
        missing = zx[:, block] - zz[:, block] @ D
        atoms, among = D[:, block], zz[:, block, block]
        for j in range(atoms.shape[1]):
            old = atoms[:, j]
            new = normalize(torch.addcmul(old, missing[:, j], inverse[:, first + j, None]), dim=1)
            missing.baddbmm_(among[:, :, j : j + 1], (old - new)[:, None])
            atoms[:, j] = new
    return D


def add_products(sums: Tensor, z: Tensor) -> None:
    """sums [R, F, F] += z^T z for z [R, n, F]; pair by pair where codes are sparse on a CPU."""
    for total, codes in zip(sums, z, strict=True):
        n, F = codes.shape
        counts = (codes != 0).sum(1)
        pairs = int(counts.square().sum()) if codes.device.type == "cpu" else n * F * F
        if pairs * 256 > n * F * F:  # a pair takes as long as so many products of a dense one
            total.addmm_(codes.t(), codes)
            continue
        rows, latents = codes.nonzero(as_tuple=True)
        values, many = codes[rows, latents], counts[rows]
        left = torch.arange(len(rows)).repeat_interleave(many)
        # The partners of a slot are the slots of its row, which start at counts.cumsum - counts.
        start = (counts.cumsum(0) - counts)[rows] - (many.cumsum(0) - many)
        right = torch.arange(pairs) + start[left]
        places = latents[left] * F + latents[right]
        total.view(-1).index_add_(0, places, values[left] * values[right])
