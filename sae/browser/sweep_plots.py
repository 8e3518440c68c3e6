"""The pictures of a sweep: error and harm over L0, and what each setting did."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sae.sweep.results import SweepResults, Trained

# Told apart by colour and by marker, also in grey.
_COLOURS = ("#2f7fc1", "#d9772b", "#3a9a5b", "#a34fb0", "#8c6d31", "#c0392b", "#5b6770", "#17a2a2")
_MARKERS = "osD^vP*X"
_AXES = {
    "held_out_fvu": "held-out FVU",
    "kl_sae": "KL with the SAE in place, nats",
    "output_cosine": "cosine of the model's output",
    "dictionary_mcc_signed": "MCC with the true features",
}


def over_l0(swept: SweepResults, column: str) -> Figure:
    """`column` of every member over its held-out L0; lines join those that differ in L0 alone."""
    figure = Figure(figsize=(6.4, 4.0), dpi=160, layout="constrained")
    ax = figure.subplots()
    rows = [row for row in swept.trained if column in row.figures]
    by = [key for key in swept.keys if not swept.sets_l0(key) and key != swept.SEED]
    combination = partial(swept.named, keys=[key for key in swept.keys if key != swept.SEED])
    _series(ax, rows, partial(swept.named, keys=by), lambda row: row.l0, column, combination)
    l0s = [row.l0 for row in rows]
    if min(l0s) > 0 and max(l0s) > 4 * min(l0s):
        ax.set_xscale("log", base=2)
        _plain(ax.xaxis)
    ax.set_xlabel("L0, latents per activation, held out")
    ax.set_ylabel(_AXES.get(column, column))
    if column == "dictionary_mcc_signed":
        chance = [row.figures["dictionary_mcc_signed_chance"] for row in rows]
        ax.axhline(max(chance), linestyle=":", color="#8a8f96", linewidth=1.2)
        ax.annotate("chance", (1, max(chance)), xycoords=("axes fraction", "data"), ha="right")
    return figure


def by_setting(swept: SweepResults, column: str = "held_out_fvu") -> Figure:
    """`column` over each setting, a panel each; lines join members that differ in it alone."""
    # Seeds are seen as the spread of the markers; they get a panel where there is no other.
    keys = [key for key in swept.keys if key != swept.SEED] or swept.keys
    figure = Figure(figsize=(4.2 * len(keys), 3.6), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    rows = [row for row in swept.trained if column in row.figures]
    for ax, key in zip(panels, keys, strict=True):
        others = [other for other in swept.keys if other not in (key, swept.SEED)]
        place = _places(ax, list(dict.fromkeys(row.settings[key] for row in rows)))
        x = lambda row, key=key, place=place: place(row.settings[key])
        _series(ax, rows, partial(swept.named, keys=others), x, column, spot=x)
        ax.set_xlabel(key)
    panels[0].set_ylabel(_AXES.get(column, column))
    return figure


def _series(
    ax: Axes,
    rows: list[Trained],
    name: Callable[[Trained], str],
    x: Callable[[Trained], float],
    column: str,
    spot: Callable[[Trained], Any],
) -> None:
    """A marked line for each name, with what it is called where there are several. It runs through
    the means of those that are of one `spot`."""
    series: dict[str, list[Trained]] = {}
    for row in rows:
        series.setdefault(name(row), []).append(row)
    looks = cycle(zip(_COLOURS, _MARKERS, strict=True))
    for (label, some), (colour, marker) in zip(series.items(), looks, strict=False):
        spots: dict[Any, list[tuple[float, float]]] = {}
        for row in some:
            spots.setdefault(spot(row), []).append((x(row), row.figures[column]))
        points = [point for found in spots.values() for point in found]
        mean = lambda found: tuple(fmean(numbers) for numbers in zip(*found, strict=True))
        joined = sorted(mean(found) for found in spots.values())
        ax.plot(*zip(*joined, strict=True), color=colour, linewidth=1.2, alpha=0.7)
        ax.plot(
            *zip(*points, strict=True), marker, color=colour, markersize=4.5, label=label or "all"
        )
    if len(series) > 1:
        ax.legend(fontsize=7.5, frameon=False, ncols=1 + (len(series) > 8))
    values = [row.figures[column] for row in rows]
    if column == "held_out_fvu" and max(values) > 10 * min(values) > 0:
        ax.set_yscale("log")


def _places(ax: Axes, values: list) -> Callable[[object], float]:
    """Where on the axis a value goes: numbers by size, words side by side."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) >= 4 * min(values):
            ax.set_xscale("log")
        ax.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
        ax.xaxis.set_minor_formatter(NullFormatter())
        return float
    places = {value: number for number, value in enumerate(values)}
    ax.set_xticks(range(len(values)), [str(value)[:24] for value in values])
    return lambda value: float(places[value])


def _plain(axis: matplotlib.axis.Axis) -> None:
    """Numbers of a logarithmic axis written out."""
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
