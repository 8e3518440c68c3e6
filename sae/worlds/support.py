"""Distributions of the active features of a sample."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor

from sae.errors import UserError

Sampler = Callable[[int, Generator], Tensor]
"""A function of (rows, generator) that draws bool [rows, n], True where a feature is active."""


class Active(ABC):
    """A distribution of subsets of n features."""

    @abstractmethod
    def frequencies(self, n: int) -> Tensor:
        """Return the probability that each of n features is active, float64 [n].

        Raises:
            UserError: The settings do not fit n features.
        """

    @abstractmethod
    def sampler(self, n: int) -> Sampler:
        """Return a function that draws the active features of samples."""

    def parents(self, n: int) -> Tensor | None:
        """Return for each feature the one without which it is never active, int64 [n].

        -1 stands for no such feature. Returns None if there is no hierarchy.
        """
        return None

    scaled_by_parent = False
    """True if the value of a feature is multiplied by that of its parent."""

    def out_of_distribution(self) -> Self | None:
        """Return a distribution of combinations that never occur in this one, or None."""
        return None


@dataclass(frozen=True, kw_only=True)
class Frequent(Active):
    """Base class of distributions with a given frequency for each feature.

    The frequency of feature i (from 1) is proportional to i^-frequency_exponent *
    frequency_decay^i, scaled to `mean_active` in total and capped at 1.

    Args:
        mean_active: mean number of active features in a sample.
        frequency_exponent: exponent of Zipf's law; 0 makes all features equally frequent.
        frequency_decay: above 0 and at most 1; 0.99 makes every feature 1% rarer than the last.
    """

    mean_active: float = 6.0
    frequency_exponent: float = 0.0
    frequency_decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.frequency_exponent < math.inf:
            raise UserError(
                f"frequency_exponent={self.frequency_exponent} is out of range; "
                f"give a finite number >= 0"
            )
        if not 0 < self.frequency_decay <= 1:
            raise UserError(f"frequency_decay={self.frequency_decay} must be above 0 and at most 1")

    def frequencies(self, n: int) -> Tensor:
        if not 0 < self.mean_active <= n:
            raise UserError(
                f"mean_active={self.mean_active} must be above 0 and at most n_features={n}"
            )
        rank = torch.arange(1, n + 1, dtype=torch.float64)
        weights = rank.pow(-self.frequency_exponent) * self.frequency_decay**rank
        # Weights decrease, so the capped features come first: as few as leave no frequency above 1.
        for capped in range(n):
            rest = weights[capped:]
            scaled = rest * ((self.mean_active - capped) / rest.sum())
            if scaled[0] <= 1:
                return torch.cat([torch.ones(capped, dtype=torch.float64), scaled])
        return torch.ones(n, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Frequent):
    """Features that fire independently, so their number varies."""

    def sampler(self, n: int) -> Sampler:
        p = self.frequencies(n)
        return lambda rows, generator: torch.rand(rows, n, generator=generator) < p


@dataclass(frozen=True, kw_only=True)
class Exact(Frequent):
    """Exactly `mean_active` features, an integer, each still with its own frequency."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean_active != int(self.mean_active):
            raise UserError(
                f"mean_active={self.mean_active} must be a whole number if exactly so many are "
                f"active; round it or choose bernoulli"
            )

    def sampler(self, n: int) -> Sampler:
        """Return a systematic sampler (Madow 1949) with a new random order for every row.

        Features are laid end to end with lengths p_i, and a comb with step 1 and a random start
        picks those it hits. Exactly sum(p) are picked, feature i with probability exactly p_i. With
        equal p every subset is equally likely. The lengths are float64, so that they add up to the
        integer.
        """
        p = self.frequencies(n)

        def draw(rows: int, generator: Generator) -> Tensor:
            order = torch.rand(rows, n, generator=generator).argsort(1)
            ends = p[order].cumsum_(1)
            ends[:, -1] = round(p.sum().item())
            start = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
            teeth = (ends + start).floor_()
            hit = teeth.diff(dim=1, prepend=torch.zeros(rows, 1, dtype=torch.float64)) > 0
            return torch.zeros_like(hit).scatter_(1, order, hit)

        return draw
