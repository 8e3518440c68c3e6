"""Which autoencoders may be compared by their error: those of about the same L0."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
# Error falls by some 5% where L0 grows by this factor, at the slopes of the recipes measured here.
ALIKE = 1.15


def of_like_l0(items: Iterable[T], l0: Callable[[T], float]) -> list[list[T]]:
    """Groups from the lowest L0 on; in each, no L0 is above the lowest times `ALIKE`."""
    groups: list[list[T]] = []
    for item in sorted(items, key=l0):
        if not groups or l0(item) > ALIKE * l0(groups[-1][0]):
            groups.append([])
        groups[-1].append(item)
    return groups
