"""What a score is: a value with its bootstrap interval, beside its chance level."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

# Resamples made at a time hold about this many numbers.
_NUMBERS = 2**22
# Clusters that are resampled at most.
_CLUSTERS = 1024


@dataclass(frozen=True)
class Score:
    """A figure with what is needed to read it.

    Attributes:
        value: over all units.
        low, high: its 95% interval under resampling of the units; NaN for fewer than two. It says
            how much the figure owes to the units drawn, not how another run would differ.
        n: units (samples, latents, features, tasks) it is over.
        chance: what the same score gives where there is nothing to find; None where that is known
            without measuring.
    """

    value: float
    low: float
    high: float
    n: int
    chance: float | None = None

    def entries(self, name: str) -> dict[str, float]:
        """`name`, and as far as they are known `name_low`, `name_high` and `name_chance`."""
        found = {"": self.value, "_low": self.low, "_high": self.high, "_chance": self.chance}
        return {
            name + end: number
            for end, number in found.items()
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
    """The score of `units` [n], by default their mean, with its percentile interval.

    Several tensors are columns of the same n units and are resampled together, for a ratio of sums
    for instance; `statistic` takes them as numpy arrays, and `axis`, the one to reduce. Units that
    hang together (tokens of a text) make the interval too narrow.
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
    """A statistic of two columns: one sum over the other."""
    return above.sum(axis) / below.sum(axis)


def sums_by_cluster(columns: Mapping[str, Tensor], cluster: Tensor) -> dict[str, Tensor]:
    """Each column [n] summed over the rows of a cluster, float64 [clusters]: what to resample, with
    `ratio`, where rows hang together. cluster [n], any integers. Beyond 1,024 of them several are
    put together, which costs the interval nothing that can be seen and saves its time.
    """
    inverse = cluster.unique(return_inverse=True)[1] % _CLUSTERS
    size = int(inverse.max()) + 1
    return {
        name: torch.zeros(size, dtype=torch.float64).index_add_(0, inverse, column.double())
        for name, column in columns.items()
    }
