"""Group SAEs by L0, because errors can only be compared at about the same L0."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
MAX_L0_RATIO = 1.15
"""Largest ratio of L0s within a group. FVU falls by about 5% when L0 grows by this factor, at the
slopes measured for the default training settings."""


def group_by_l0(items: Iterable[T], l0: Callable[[T], float]) -> list[list[T]]:
    """Return groups of items whose L0s lie within a factor `MAX_L0_RATIO`, lowest L0 first.

    Args:
        items: Items to group.
        l0: Returns the L0 of an item.
    """
    groups: list[list[T]] = []
    for item in sorted(items, key=l0):
        if not groups or l0(item) > MAX_L0_RATIO * l0(groups[-1][0]):
            groups.append([])
        groups[-1].append(item)
    return groups
