"""What a score is: a value with its bootstrap interval, beside its chance level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

# Resamples made at a time hold about this many numbers.
_NUMBERS = 2**22


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
