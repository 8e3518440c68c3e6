"""A target is a published experiment that we repeat, with bounds on what we measure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """A quantity that we measured.

    Attributes:
        what: Its name.
        values: One value for each seed.
        published: The published value as printed; empty if there is none.
        low: Lower bound on every value; None for no bound.
        high: Upper bound on every value; None for no bound.
    """

    what: str
    values: tuple[float, ...]
    published: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def median(self) -> float:
        """Median over seeds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """Range from lowest to highest value; empty for one seed."""
        if len(self.values) == 1:
            return ""
        return f"{min(self.values):.3g} to {max(self.values):.3g}"

    @property
    def bar(self) -> str:
        """The bounds as text; empty if there are none."""
        ends = {">=": self.low, "<=": self.high}
        return ", ".join(f"{sign} {end:g}" for sign, end in ends.items() if end is not None)

    @property
    def verdict(self) -> str:
        """`yes` if all values are within the bounds, else `NO`; empty without bounds.

        NaN is never within bounds.
        """
        if not self.bar:
            return ""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return "yes" if all(low <= value <= high for value in self.values) else "NO"


@dataclass(frozen=True)
class Target:
    """A published experiment.

    Attributes:
        name: Name on the command line.
        source: Paper and table.
        run: Yields the measured quantities, each as soon as it is known.
    """

    name: str
    source: str
    run: Callable[[], Iterable[Measurement]]
