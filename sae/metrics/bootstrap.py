"""Scores: a value with its bootstrap interval and its chance level."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

# Resamples are drawn in batches of about this many numbers.
_NUMBERS = 2**22
# Largest number of clusters that are resampled.
_CLUSTERS = 1024


@dataclass(frozen=True)
class Score:
    """The value of a metric with its interval and its chance level.

    Attributes:
        value: the metric over all units.
        low: lower end of its 95% interval under resampling of the units; NaN for fewer than two.
            The interval shows how much the value depends on the units drawn, not how another
            training run would differ.
        high: upper end of the interval.
        n: number of units (samples, latents, features or tasks).
        chance: value of the metric where there is nothing to find; None if it is not known.
    """

    value: float
    low: float
    high: float
    n: int
    chance: float | None = None

    def entries(self, name: str) -> dict[str, float]:
        """Return the value under `name`, and `name_low`, `name_high`, `name_chance` if known."""
        entries = {"": self.value, "_low": self.low, "_high": self.high, "_chance": self.chance}
        return {
            name + end: number
            for end, number in entries.items()
            if number is not None and not (end and math.isnan(number))
        }

    def __str__(self) -> str:
        chance = "" if self.chance is None else f", chance {self.chance:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n {self.n}{chance})"


def bootstrap_score(
    *units: Tensor,
    statistic: Callable[..., np.ndarray] = np.mean,
    chance: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Return the score of some units, by default their mean, with its percentile interval.

    Args:
        units: values [n]. Several tensors are columns of the same n units and are resampled
            together, for example for a ratio of sums. Units that depend on each other, such as
            tokens of one text, make the interval too narrow; see `sums_by_cluster`.
        statistic: function of the columns as numpy arrays, and of `axis`, the axis to reduce.
        chance: chance level of the metric.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.
    """
    columns = tuple(column.detach().double().cpu().numpy() for column in units)
    n = len(columns[0])
    value = float(statistic(*columns, axis=0)) if n else math.nan
    if n < 2:
        return Score(value, math.nan, math.nan, n, chance)
    interval = stats.bootstrap(
        columns,
        statistic,
        paired=len(columns) > 1,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _NUMBERS // n),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Score(value, float(interval.low), float(interval.high), n, chance)


def ratio(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
    """Return the sum of one column over the sum of another, a statistic for `bootstrap_score`."""
    return above.sum(axis) / below.sum(axis)


def sums_by_cluster(columns: Mapping[str, Tensor], cluster: Tensor) -> dict[str, Tensor]:
    """Return the sum of each column over the rows of each cluster.

    Resample these sums with `ratio` if rows of a cluster depend on each other.

    Args:
        columns: values [n] by name.
        cluster: cluster of each row [n], any integers. Clusters beyond 1,024 are merged with
            others, which saves time and does not visibly change the interval.

    Returns:
        Sums by name, float64 [clusters].
    """
    inverse = cluster.unique(return_inverse=True)[1] % _CLUSTERS
    size = int(inverse.max()) + 1
    return {
        name: torch.zeros(size, dtype=torch.float64).index_add_(0, inverse, column.double())
        for name, column in columns.items()
    }
