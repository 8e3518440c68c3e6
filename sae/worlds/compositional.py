"""Compositional features: some combinations never occur in training."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor

from sae.errors import UserError
from sae.worlds.support import Active, Sampler


@dataclass(frozen=True, kw_only=True)
class Compositional(Active):
    """Exactly `mean_active` features, where feature 0 never occurs with the last half of them.

    In distribution, feature 0 is active in a share `first` of the samples, together with features
    from 1 to n - n // 2 - 1; the other samples are any subset of features 1 to n - 1. Out of
    distribution, feature 0 is always active, together with features from the last n // 2 only. This
    is the split of Barin Pacela et al. (arXiv 2603.28744). All allowed subsets are equally likely.

    Args:
        mean_active: number of active features in a sample, an integer.
        first: share of the samples in distribution that have feature 0.
        out: draw all samples out of distribution, training samples too.
    """

    mean_active: int = 3
    first: float = 0.5
    out: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.first < 1:
            raise UserError(f"first={self.first} must lie between 0 and 1")

    def _check(self, n: int) -> None:
        most = min(n - n // 2, n // 2 + 1)
        if not 1 < self.mean_active <= most or self.mean_active != int(self.mean_active):
            raise UserError(
                f"mean_active={self.mean_active} must be a whole number from 2 to {most}: half of "
                f"n_features={n} must hold the features that occur with feature 0"
            )

    def frequencies(self, n: int) -> Tensor:
        self._check(n)
        half, k = n // 2, self.mean_active
        p = torch.zeros(n, dtype=torch.float64)
        if self.out:
            p[0], p[n - half :] = 1, (k - 1) / half
            return p
        p[1:] = (1 - self.first) * k / (n - 1)
        p[1 : n - half] += self.first * (k - 1) / (n - half - 1)
        p[0] = self.first
        return p

    def sampler(self, n: int) -> Sampler:
        self._check(n)
        half = n - n // 2

        def draw(rows: int, generator: Generator) -> Tensor:
            with_first = torch.rand(rows, 1, generator=generator) < (1 if self.out else self.first)
            # The k highest of random scores are a random subset. Features that are not allowed get
            # the lowest scores, and feature 0 the highest or the lowest.
            score = torch.rand(rows, n, generator=generator)
            score[:, slice(1, half) if self.out else slice(half, n)].sub_(2 * with_first)
            score[:, :1] = torch.where(with_first, 2.0, -2.0)
            chosen = score.topk(self.mean_active, dim=1).indices
            return torch.zeros(rows, n, dtype=torch.bool).scatter_(1, chosen, True)

        return draw

    def out_of_distribution(self) -> Self | None:
        return None if self.out else replace(self, out=True)
