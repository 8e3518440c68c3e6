"""What a target is: a published experiment, run anew, with the figures that are held against it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure of ours.

    Args:
        what: in words.
        values: one per seed.
        published: as printed in the source; empty where there is none.
        low, high: every value must be at least, and at most, this; None where nothing is promised.
    """

    what: str
    values: tuple[float, ...]
    published: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """Lowest to highest; empty for one seed."""
        if len(self.values) == 1:
            return ""
        return f"{min(self.values):.3g} to {max(self.values):.3g}"

    @property
    def bar(self) -> str:
        ends = {">=": self.low, "<=": self.high}
        return ", ".join(f"{sign} {end:g}" for sign, end in ends.items() if end is not None)

    @property
    def verdict(self) -> str:
        """`yes` or `NO`; empty where nothing is promised. A figure that is no number is a no."""
        if not self.bar:
            return ""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return "yes" if all(low <= value <= high for value in self.values) else "NO"


@dataclass(frozen=True)
class Target:
    """An experiment.

    Args:
        name: on the command line.
        source: paper and table.
        run: gives the figures, each as soon as it is known.
    """

    name: str
    source: str
    run: Callable[[], Iterable[Figure]]
