"""The plots of a sweep: error and damage to the model over L0, and error over each setting."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sae.browser.style import COLORS, legend_above
from sae.metrics.registry import find_metric
from sae.sweep.results import MemberResult, SweepResults

# Series differ in color and in marker, so that they can also be told apart in gray.
_MARKERS = "osD^vP*X"


def plot_over_l0(results: SweepResults, column: str) -> Figure:
    """Plot a metric of every finished member over its held-out L0.

    A line joins the members that differ only in settings that determine L0.

    Args:
        results: The sweep.
        column: Metric, as `sweep.csv` names it.
    """
    figure = Figure(figsize=(4.8, 3.6), dpi=160, layout="constrained")
    ax = figure.subplots()
    members = [member for member in results.finished if column in member.metrics]
    other_keys = [key for key in results.keys_without_seed if not results.sets_l0(key)]
    if column == "dictionary_mcc_signed":
        chance = max(member.metrics["dictionary_mcc_signed_chance"] for member in members)
        ax.axhline(chance, linestyle=":", color="#8a8f96", linewidth=1.2, label="by chance")
    _draw_series(
        ax,
        members,
        column,
        x=lambda member: member.l0,
        series=partial(results.describe, keys=other_keys),
        point=partial(results.describe, keys=results.keys_without_seed),
    )
    l0s = [member.l0 for member in members]
    if min(l0s) > 0 and max(l0s) > 4 * min(l0s):
        ax.set_xscale("log", base=2)
        _write_out_numbers(ax.xaxis)
    ax.set_xlabel("L0, latents per activation, held out")
    ax.set_ylabel(find_metric(column).axis_label)
    return figure


def plot_settings(
    results: SweepResults, keys: list[str] | None = None, column: str = "held_out_fvu"
) -> Figure:
    """Plot a metric of every finished member over settings, one panel for each setting.

    A line joins the members that differ only in the setting of the panel.

    Args:
        results: The sweep.
        keys: Settings to plot; `setting_keys` by default.
        column: Metric, as `sweep.csv` names it.
    """
    keys = keys or setting_keys(results)
    figure = Figure(figsize=(4.8 * len(keys), 3.6), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    members = [member for member in results.finished if column in member.metrics]
    for ax, key in zip(panels, keys, strict=True):
        other_keys = [other for other in results.keys_without_seed if other != key]
        to_x = _scale_for(ax, list(dict.fromkeys(member.settings[key] for member in members)))
        x = lambda member, key=key, to_x=to_x: to_x(member.settings[key])
        series = partial(results.describe, keys=other_keys)
        _draw_series(ax, members, column, x=x, series=series, point=x)
        ax.set_xlabel(key)
    panels[0].set_ylabel(find_metric(column).axis_label)
    return figure


def setting_keys(results: SweepResults) -> list[str]:
    """Return the settings that get a panel of their own.

    The seed gets one only if nothing else is swept over: otherwise seeds show as the scatter of
    the markers.
    """
    return results.keys_without_seed or results.keys


def _draw_series(
    ax: Axes,
    members: list[MemberResult],
    column: str,
    *,
    x: Callable[[MemberResult], float],
    series: Callable[[MemberResult], str],
    point: Callable[[MemberResult], Any],
) -> None:
    """Draw a marker for each member and a line for each series.

    Args:
        ax: Axes to draw on.
        members: Members to draw.
        column: Metric on the y axis.
        x: Returns a member's place on the x axis.
        series: Returns the name of the line a member belongs to.
        point: Returns what the seeds of one combination share; the line runs through their mean.
    """
    by_series: dict[str, list[MemberResult]] = {}
    for member in members:
        by_series.setdefault(series(member), []).append(member)
    styles = cycle(zip(COLORS, _MARKERS, strict=True))
    for (name, in_series), (color, marker) in zip(by_series.items(), styles, strict=False):
        by_point: dict[Any, list[tuple[float, float]]] = {}
        for member in in_series:
            by_point.setdefault(point(member), []).append((x(member), member.metrics[column]))
        xs, ys = zip(*(xy for points in by_point.values() for xy in points), strict=True)
        means = sorted(
            (fmean(x for x, _ in points), fmean(y for _, y in points))
            for points in by_point.values()
        )
        ax.plot(*zip(*means, strict=True), color=color, linewidth=1.2, alpha=0.7)
        label = name if len(by_series) > 1 else None
        ax.plot(xs, ys, marker, color=color, markersize=4.5, label=label)
    if ax.get_legend_handles_labels()[1]:
        legend_above(ax)
    values = [member.metrics[column] for member in members]
    if column == "held_out_fvu" and max(values) > 10 * min(values) > 0:
        ax.set_yscale("log")


def _scale_for(ax: Axes, values: list) -> Callable[[Any], float]:
    """Set up the x axis for the values of a setting, and return what places a value on it.

    Numbers are placed by their size, on a logarithmic axis if they span a factor of 4; anything
    else is placed side by side.
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) >= 4 * min(values):
            ax.set_xscale("log")
        ax.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
        ax.xaxis.set_minor_formatter(NullFormatter())
        return float
    positions = {value: number for number, value in enumerate(values)}
    ax.set_xticks(range(len(values)), [str(value)[:24] for value in values])
    return lambda value: float(positions[value])


def _write_out_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers instead of powers."""
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
