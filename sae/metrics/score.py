"""Scores: a value with its 95% interval and its chance level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.metrics.interval import ANY, MIN_UNITS, Bounds, ratio_interval

MAX_CLUSTERS = 1024
"""Largest number of clusters whose sums are stored."""


@dataclass(frozen=True)
class Score:
    """The value of a metric with its interval and its chance level.

    Attributes:
        value: the metric over all units.
        low: lower end of its 95% interval; NaN for fewer than `MIN_UNITS` units. The interval shows
            how much the value depends on the units drawn, not how another training run would
            differ.
        high: upper end of the interval.
        n: number of independent units (documents, samples, latents, features or tasks).
        chance: value of the metric for something that was not trained; None if it is not known.
    """

    value: float
    low: float
    high: float
    n: int
    chance: float | None = None

    def entries(self, name: str) -> dict[str, float]:
        """Return the value under `name`, and `name_low`, `name_high`, `name_chance` if known.

        If there are too few units for an interval, their number is `name_units`.
        """
        entries = {"": self.value, "_low": self.low, "_high": self.high, "_chance": self.chance}
        if self.n < MIN_UNITS and not math.isnan(self.value):
            entries["_units"] = self.n
        return {
            name + end: number
            for end, number in entries.items()
            if number is not None and not (end and math.isnan(number))
        }

    def __str__(self) -> str:
        if math.isnan(self.low):
            interval = f"no interval from {self.n}" if self.n < MIN_UNITS else "no interval"
        else:
            interval = f"{self.low:.3f}, {self.high:.3f}"
        chance = "" if self.chance is None else f", chance {self.chance:.3f}"
        return f"{self.value:.3f} [{interval}] (n {self.n}{chance})"


def ratio_score(
    above: Tensor, below: Tensor, *, bounds: Bounds = ANY, chance: float | None = None
) -> Score:
    """Return the score sum(above) / sum(below) of independent units, see `ratio_interval`.

    Args:
        above: numerators [n].
        below: denominators [n]. If the rows depend on each other, such as tokens of one text, give
            sums over the independent clusters, see `sums_by_cluster`.
        bounds: smallest and largest possible value, such as `POSITIVE` or `SHARE`.
        chance: chance level of the metric.
    """
    numerators, denominators = (c.detach().double().cpu().numpy() for c in (above, below))
    value, low, high, units = ratio_interval(numerators, denominators, bounds)
    return Score(float(value), float(low), float(high), int(units), chance)


def mean_score(values: Tensor, *, bounds: Bounds = ANY, chance: float | None = None) -> Score:
    """Return the score that is the mean of one value per independent unit.

    Args:
        values: one value per unit [n], for example per latent.
        bounds: smallest and largest possible value, such as `SHARE`.
        chance: chance level of the metric.
    """
    return ratio_score(values, torch.ones(len(values)), bounds=bounds, chance=chance)


def sums_by_cluster(columns: Mapping[str, Tensor], cluster: Tensor) -> dict[str, Tensor]:
    """Return the sum of each column over the rows of each cluster, for `ratio_score`.

    Args:
        columns: values [n] by name.
        cluster: cluster of each row [n], any integers. Clusters beyond 1,024 are merged with
            others, which saves time and does not visibly change the interval.

    Returns:
        Sums by name, float64 [clusters].
    """
    inverse = cluster.unique(return_inverse=True)[1] % MAX_CLUSTERS
    size = int(inverse.max()) + 1
    return {
        name: torch.zeros(size, dtype=torch.float64).index_add_(0, inverse, column.double())
        for name, column in columns.items()
    }
