"""The plots of a run: inline SVG for its page, and one PNG for a README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    Formatter,
    FuncFormatter,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from sae.browser.run_data import RunData
from sae.browser.style import COLORS, legend_above, png_style, svg_style, to_svg, write_png
from sae.metrics.firing import Firing, density_histogram
from sae.metrics.registry import find_metric

TERM_PREFIX = "loss_"
"""Columns of metrics.csv with this prefix are single terms of the loss."""
_MAX_POINTS = 400  # per curve, so that the page of a run of millions of steps still opens
_PANEL_INCHES = 4.0, 2.9  # 288 pt wide: text of 9.5 pt is 11 px high on a phone 350 px wide
_LINE_HEIGHT = 12  # points of one row of a legend
_TRAINING, _HELD_OUT = COLORS[:2]
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


@dataclass(frozen=True)
class _Panel:
    """A plot of one column of metrics.csv over the tokens.

    Attributes:
        column: Column of metrics.csv; `loss` is drawn with its terms.
        formatter: Format of the tick labels of the y axis.
        log: Whether the y axis is logarithmic when the values span more than a factor of 10.
    """

    column: str
    formatter: Formatter | None = None
    log: bool = False


_PANELS = (
    _Panel("fvu", log=True),
    _Panel("loss", log=True),
    _Panel("dead_fraction", PercentFormatter(1.0)),
    _Panel("l0"),
    _Panel("lr", _PLAIN),
    _Panel("tokens_per_second", EngFormatter(sep="")),
)


def curves_svg(run: RunData) -> list[str]:
    """Return one `<svg>` element for each curve that the run's metrics.csv has."""
    return [_panel_svg(run, panel) for panel in _PANELS if run.curves.points.get(panel.column)]


def density_svg(firing: Firing) -> str:
    """Return the histogram of firing densities as an `<svg>` element."""
    with svg_style("density"):
        figure, ax = _new_figure()
        _draw_density(ax, firing)
        return to_svg(figure)


def curves_png(run_dir: str | Path, path: str | Path) -> None:
    """Draw a run's FVU, dead latents and firing densities side by side as one PNG.

    Raises:
        UserError: If `run_dir` is not the folder of a run.
    """
    run = RunData.read(run_dir)
    panels = [
        panel
        for panel in _PANELS
        if panel.column in ("fvu", "dead_fraction") and run.curves.points.get(panel.column)
    ]
    with png_style():
        count = max(len(panels) + (run.firing is not None), 1)
        figure = Figure(figsize=(3.5 * count, 2.9), dpi=160, layout="constrained")
        figure.get_layout_engine().set(wspace=0.06, w_pad=0.08, h_pad=0.08)  # pyright: ignore
        axes = figure.subplots(1, count, squeeze=False).flatten()
        for ax, panel in zip(axes, panels, strict=False):
            _draw_panel(ax, run, panel)
        if run.firing is not None:
            _draw_density(axes[-1], run.firing, "How often latents fire")
        write_png(figure, path)


def _new_figure() -> tuple[Figure, Axes]:
    """Return a panel whose margins hold the tick labels, the axis labels and no title.

    The margins are fixed because a layout engine draws every figure twice more to measure its
    labels, which took 60% of the time.
    """
    figure = Figure(figsize=_PANEL_INCHES)
    figure.subplots_adjust(left=0.16, right=0.96, bottom=0.17, top=0.91)
    return figure, figure.subplots()


def _panel_svg(run: RunData, panel: _Panel) -> str:
    with svg_style(panel.column):
        figure, ax = _new_figure()
        rows = _draw_panel(ax, run, panel)
        title_height = (6 + _LINE_HEIGHT * rows + 14) / 72  # inches: space, legend, title
        figure.subplots_adjust(top=1 - title_height / _PANEL_INCHES[1])
        return to_svg(figure)


def _draw_panel(ax: Axes, run: RunData, panel: _Panel) -> int:
    """Draw the panel, and return how many lines of text lie between the axes and their title."""
    points = run.curves.points
    x, y = _thinned(points[panel.column]).T
    lowest, highest = y.min(), y.max()
    terms = [name for name in points if name.startswith(TERM_PREFIX)]
    terms = terms if panel.column == "loss" and len(terms) > 1 else []
    held_out = run.held_out.get(panel.column)
    marker = "." if len(x) < 20 else ""
    label = "sum" if terms else "training"
    # The sum is a broad pale line, so that the terms on top of it stay visible.
    width, alpha = (4.0, 0.4) if terms else (1.5, 1.0)
    ax.plot(x, y, color=_TRAINING, linewidth=width, alpha=alpha, marker=marker, label=label)
    for term, color in zip(terms, COLORS[1:] * len(terms), strict=False):
        term_x, term_y = _thinned(points[term]).T
        name = term.removeprefix(TERM_PREFIX)
        ax.plot(term_x, term_y, color=color, linewidth=1.1, marker=marker, label=name)
        positive = term_y[term_y > 0]
        lowest = min(lowest, positive.min() if len(positive) else lowest)
        highest = max(highest, term_y.max())
    if isinstance(held_out, int | float):
        lowest, highest = min(lowest, held_out), max(highest, held_out)
        label = f"held-out {held_out:.3g}"
        ax.axhline(held_out, color=_HELD_OUT, linewidth=1.2, linestyle=(0, (4, 2)), label=label)
    rows = legend_above(ax) if terms or isinstance(held_out, int | float) else 1
    ax.set_title(find_metric(panel.column).title, pad=6 + _LINE_HEIGHT * rows)
    ax.set_xlabel(run.curves.x_name)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.log and lowest > 0 and highest > 10 * lowest:
        ax.set_yscale("log", nonpositive="mask")
        ax.set_ylim(max(lowest, 1e-4 * highest) / 1.3, 1.3 * highest)
        ax.yaxis.set_major_formatter(_PLAIN)
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif lowest >= 0:
        ax.set_ylim(0, max(highest * 1.08, 0.01 if panel.column == "dead_fraction" else 1e-12))
    if panel.formatter:
        ax.yaxis.set_major_formatter(panel.formatter)
    return rows


def _thinned(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return at most `_MAX_POINTS` rows (x, y), each the mean of its share of the points."""
    array = np.array(points)
    if len(array) <= _MAX_POINTS:
        return array
    return np.array([part.mean(0) for part in np.array_split(array, _MAX_POINTS)])


def _draw_density(ax: Axes, firing: Firing, title: str | None = None) -> None:
    histogram = density_histogram(firing)
    edges = 10 ** histogram.edges.numpy()
    ax.stairs(histogram.counts.numpy(), edges, fill=True, color=_HELD_OUT, alpha=0.85)
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0.8 / max(firing.tokens, 1), 1.25)
    ax.set_ylim(0, 1.08 * max(histogram.counts.max().item(), 1))
    ax.set_xlabel("share of held-out tokens a latent fires on")
    ax.set_ylabel("latents")
    never = f"{histogram.never_fired:,} of {len(firing.counts):,} never fired"
    ax.annotate(
        f"{never} in {firing.tokens:,} tokens",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 3),
        textcoords="offset points",
        va="bottom",
        fontsize=8.5,
    )
    if title:
        ax.set_title(title, pad=6 + _LINE_HEIGHT)
