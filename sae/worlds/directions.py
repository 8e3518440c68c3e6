"""Directions of features: the rows of a world's dictionary."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.errors import UserError
from sae.worlds.seeding import generator_of

Samples = Callable[[int, int], Tensor]


class Directions(ABC):
    """A way to place n features in d_in dimensions."""

    learned = False
    """True if `rows` trains a network; its result is then kept on disk."""

    def check(self, n: int, d_in: int) -> None:  # noqa: B027
        """Raise UserError if n features cannot be placed in d_in dimensions this way."""

    @abstractmethod
    def rows(self, n: int, d_in: int, seed: int, samples: Samples) -> Tensor:
        """Return the dictionary, float32 [n, d_in].

        Args:
            n: Number of features.
            d_in: Number of dimensions.
            seed: Seed of the directions.
            samples: For directions that are learned: samples(size, step) draws dense codes
                [size, n] of the world, independent for every step.
        """


@dataclass(frozen=True)
class Random(Directions):
    """Random directions of norm 1."""

    def rows(self, n: int, d_in: int, seed: int, samples: Samples) -> Tensor:
        return normalize(torch.randn(n, d_in, generator=generator_of(seed)), dim=1)


@dataclass(frozen=True)
class Orthogonal(Directions):
    """Orthogonal directions of norm 1; needs at least as many dimensions as features."""

    def check(self, n: int, d_in: int) -> None:
        if n > d_in:
            raise UserError(f"n_features={n} directions cannot be orthogonal in d_in={d_in}")

    def rows(self, n: int, d_in: int, seed: int, samples: Samples) -> Tensor:
        drawn = torch.randn(d_in, n, generator=generator_of(seed), dtype=torch.float64)
        return torch.linalg.qr(drawn).Q.T.float().contiguous()


@dataclass(frozen=True, kw_only=True)
class Coherent(Directions):
    """Directions of norm 1 with a given largest |cosine| between any two.

    Random directions are made less coherent by alternating projections between Gram matrices
    without larger entries and Gram matrices of rank d_in (Tropp et al. 2005, "Designing structured
    tight frames via an alternating projection method"), or more coherent by adding one common
    direction. A bisection between the last two then meets `coherence`. No directions exist below
    `welch_bound`; a little above it they are found.

    Args:
        coherence: largest |cosine|, above 0 and below 1; met within 1e-4.
    """

    coherence: float = 0.3

    def check(self, n: int, d_in: int) -> None:
        if not welch_bound(n, d_in) < self.coherence < 1:
            raise UserError(
                f"coherence={self.coherence} is out of reach for n_features={n} in d_in={d_in}; "
                f"give above {welch_bound(n, d_in):.3f} and below 1"
            )

    def rows(self, n: int, d_in: int, seed: int, samples: Samples) -> Tensor:
        generator = generator_of(seed)
        drawn = torch.randn(n, d_in, generator=generator, dtype=torch.float64)
        above = below = normalize(drawn, dim=1)
        if coherence(above) > self.coherence:
            for _ in range(5000):
                below = _flatter(above, (welch_bound(n, d_in) + self.coherence) / 2)
                if coherence(below) <= self.coherence:
                    break
                above = below
            else:
                raise UserError(
                    f"coherence={self.coherence} was not reached, only {coherence(below):.3f}; "
                    f"give a little more than that"
                )
        else:
            above = torch.randn(1, d_in, generator=generator, dtype=torch.float64).expand(n, -1)
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            rows = normalize(torch.lerp(below, above, middle), dim=1)
            low, high = (middle, high) if coherence(rows) <= self.coherence else (low, middle)
        return normalize(torch.lerp(below, above, low), dim=1).float()


def welch_bound(n: int, d_in: int) -> float:
    """Return the least possible coherence of n unit vectors in d_in dimensions (Welch 1974)."""
    return math.sqrt((n - d_in) / (d_in * (n - 1))) if n > d_in else 0.0


def coherence(rows: Tensor) -> float:
    """Return the largest |cosine| between two rows of norm 1 [n, d_in]; 0 for a single row."""
    return (rows @ rows.T).fill_diagonal_(0).abs().max().item()


def _flatter(rows: Tensor, bound: float) -> Tensor:
    """Do one alternating projection of unit rows [n, d_in] towards |cosines| of at most `bound`."""
    gram = (rows @ rows.T).clamp(-bound, bound).fill_diagonal_(1)
    values, vectors = torch.linalg.eigh(gram)
    d_in = rows.shape[1]
    top = vectors[:, -d_in:] * values[-d_in:].clamp(min=0).sqrt()
    # Eigenvectors are arbitrary up to a rotation. The rotation nearest to the previous rows keeps
    # interpolation between the two meaningful.
    missing = d_in - top.shape[1]
    top = torch.nn.functional.pad(top, (missing, 0))
    U, _, Vh = torch.linalg.svd(top.T @ rows)
    return normalize(top @ (U @ Vh), dim=1)
