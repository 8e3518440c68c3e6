"""95% intervals of means and of ratios of sums over independent units of unequal size.

The units are documents, latents, features or tasks. A percentile bootstrap over a few documents is
too narrow: it does not correct the variance for the fitted ratio, and it takes no account of how
few documents of unequal length there are. `docs/results/intervals.md` compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

Bounds = tuple[float, float]
"""Smallest and largest possible value of a metric; infinite where there is none."""
ANY: Bounds = (-np.inf, np.inf)
POSITIVE: Bounds = (0.0, np.inf)
SHARE: Bounds = (0.0, 1.0)
COSINE: Bounds = (-1.0, 1.0)

MIN_UNITS = 6
"""Fewest units that an interval is given for. With 5 documents the interval of FVU is wider than
1.5 times the FVU in the simulation of `benchmarks.coverage`."""

_UPPER = 0.975


class Interval(NamedTuple):
    """A ratio of sums with its 95% interval; arrays of the shape of the inputs without their axis.

    Attributes:
        value: the ratio; NaN if the lower column adds up to 0.
        low: lower end; NaN if there is no interval.
        high: upper end.
        units: number of units in which one of the two columns is not 0.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    units: np.ndarray


def ratio_interval(above: np.ndarray, below: np.ndarray, bounds: Bounds = ANY) -> Interval:
    """Return sum(above) / sum(below) over independent units, and its 95% interval.

    1. Standard error: the linearised one of a ratio, from the residuals above - ratio * below. Each
       squared residual is divided by 1 - the unit's share of sum(below), because large units pull
       the ratio towards themselves: "bias-reduced linearisation", CR2 (Bell & McCaffrey, Survey
       Methodology 28, 2002).
    2. Degrees of freedom of Student's t: Satterthwaite's for this variance (same paper), under the
       model that errors within a unit move together, so that their sum grows with the unit's size
       (Imbens & Kolesár, Review of Economics and Statistics 98, 2016). For n units of equal size
       they are n - 1; for units of unequal size they are fewer.
    3. Scale, by the bounds. Two finite bounds: Clopper-Pearson with the number of independent draws
       that would have this standard error (Korn & Graubard, Survey Methodology 24, 1998). If every
       unit lies at a bound, that number is the number of units, so the interval is not empty. A
       lower bound only: all values r that differ from the ratio by at most t standard errors, if
       the variance grows in proportion to r. This is the limit of Wilson's interval for small
       shares; it is symmetric in log r. No bound: ratio +- t standard errors.

    Args:
        above: numerators [..., units].
        below: denominators [..., units], usually positive.
        bounds: possible values of the ratio: `ANY`, `POSITIVE`, `SHARE`, `COSINE` or others with
            two finite ends or none above.
    """
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    units = ((above != 0) | (below != 0)).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = below.sum(-1)
        value = above.sum(-1) / total
        residual = (above - value[..., None] * below) / total[..., None]
        size = np.abs(below) / np.abs(below).sum(-1, keepdims=True)
        error, df = _standard_error(residual, below / total[..., None], size)
        t = stdtrit(df, _UPPER)
        low, high = bounds
        if np.isfinite(low) and np.isfinite(high):
            span = high - low
            ends = _share_ends((value - low) / span, error / span, t, units)
            ends = low + span * ends[0], low + span * ends[1]
        elif np.isfinite(low):
            ends = _positive_ends(value - low, error, t)
            ends = low + ends[0], low + ends[1]
        else:
            ends = value - t * error, value + t * error
    few = (units < MIN_UNITS) | ~np.isfinite(value)
    low_end, high_end = (np.where(few, np.nan, end) for end in ends)
    return Interval(value, low_end, high_end, units)


def _standard_error(
    residual: np.ndarray, weight: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard error of a ratio and its degrees of freedom.

    The variance is the quadratic form sum d e^2 of the residuals e = u - w sum(u), where u are the
    units' independent errors with variance size^2, w their weights and d = 1 / (1 - size).

    Args:
        residual: e [..., units].
        weight: w [..., units], which adds up to 1.
        size: share of each unit, not negative, adds up to 1 [..., units].
    """
    d, v = 1 / (1 - size), size**2
    dw = d * weight
    c = (dw * weight).sum(-1)
    total, first = v.sum(-1), (v * dw).sum(-1)
    # Trace and squared Frobenius norm of V^(1/2) M V^(1/2), where the quadratic form is u' M u with
    # M_ij = d_i [i = j] - dw_i - dw_j + c.
    trace = (v * (d - 2 * dw)).sum(-1) + c * total
    square = (
        (v**2 * (d**2 + 2 * d * (c[..., None] - 2 * dw))).sum(-1)
        + 2 * total * (v * dw**2).sum(-1)
        + 2 * first**2
        + (c * total) ** 2
        - 4 * c * total * first
    )
    return np.sqrt((d * residual**2).sum(-1)), np.maximum(trace**2 / square, 1)


def _share_ends(
    share: np.ndarray, error: np.ndarray, t: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the Clopper-Pearson interval with an effective number of draws."""
    share = share.clip(0, 1)
    inside = (share > 0) & (share < 1)
    draws = np.where(inside, share * (1 - share) * (ndtri(_UPPER) / (t * error)) ** 2, units)
    # Without variance the number of draws is infinite, and the interval is the share itself.
    constant = inside & (error == 0)
    draws = np.where(constant, 1, draws)
    hits, misses = share * draws, (1 - share) * draws
    low = np.where(hits > 0, betaincinv(hits, misses + 1, 1 - _UPPER), 0)
    high = np.where(misses > 0, betaincinv(hits + 1, misses, _UPPER), 1)
    return np.where(constant, share, low), np.where(constant, share, high)


def _positive_ends(
    value: np.ndarray, error: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return both solutions r of (value - r)^2 = t^2 error^2 r / value.

    A value of 0 has none (NaN), because zeros say nothing about the scale. A value below the bound,
    possible only by rounding, has value +- t error.
    """
    half = np.exp(2 * np.arcsinh(t * error / (2 * value)))
    positive, negative = value > 0, value < 0
    low = np.where(positive, value / half, np.where(negative, value - t * error, np.nan))
    high = np.where(positive, value * half, np.where(negative, value + t * error, np.nan))
    return low, high
