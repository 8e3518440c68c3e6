"""What is active: which of its features a sample of a world has."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor

from sae.errors import UserError

Sampler = Callable[[int, Generator], Tensor]


class Active(ABC):
    """A distribution of subsets of n features."""

    @abstractmethod
    def frequencies(self, n: int) -> Tensor:
        """How often each of n features is active, float64 [n]; UserError where n does not fit."""

    @abstractmethod
    def sampler(self, n: int) -> Sampler:
        """A function of (rows, generator) that draws bool [rows, n], True where active."""

    def parents(self, n: int) -> Tensor | None:
        """int64 [n]: the feature without which a feature is never active, -1 for none; None where
        there is no hierarchy."""
        return None

    scaled_by_parent = False
    """Whether the value of a feature is a multiple of its parent's."""

    def out_of_distribution(self) -> Self | None:
        """The same features in combinations that this distribution never has; None where there
        are none."""
        return None


@dataclass(frozen=True, kw_only=True)
class Frequent(Active):
    """What the rules with a frequency for each feature share.

    The frequency of feature i (from 1) is proportional to i^-frequency_exponent *
    frequency_decay^i, scaled to `mean_active` in all and capped at 1.

    Args:
        mean_active: how many features are active in a sample, on average.
        frequency_exponent: of Zipf's law; 0 makes all equally frequent.
        frequency_decay: above 0 and at most 1; 0.99 for every feature 1% rarer than the last.
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
        # Weights fall, so the capped features are the first m: the fewest for which none exceeds 1.
        for capped in range(n):
            rest = weights[capped:]
            scaled = rest * ((self.mean_active - capped) / rest.sum())
            if scaled[0] <= 1:
                return torch.cat([torch.ones(capped, dtype=torch.float64), scaled])
        return torch.ones(n, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Frequent):
    """Every feature fires on its own, so their number varies."""

    def sampler(self, n: int) -> Sampler:
        p = self.frequencies(n)
        return lambda rows, generator: torch.rand(rows, n, generator=generator) < p


@dataclass(frozen=True, kw_only=True)
class Exact(Frequent):
    """Exactly `mean_active` features fire, a whole number, each still with its own frequency."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean_active != int(self.mean_active):
            raise UserError(
                f"mean_active={self.mean_active} must be a whole number where exactly so many are "
                f"active; round it or choose bernoulli"
            )

    def sampler(self, n: int) -> Sampler:
        """Systematic sampling in a fresh random order for every row (Madow 1949): features are laid
        end to end with lengths p_i, and a comb of step 1 with a random start picks those it hits.
        Exactly sum(p) are picked, feature i with probability exactly p_i; with equal p every subset
        is equally likely. float64: the lengths must add up to the whole number."""
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
