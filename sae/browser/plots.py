"""The pictures of a run: inline SVG for the report, one PNG for a README."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter, PercentFormatter

from sae.browser.run_data import Run
from sae.browser.style import for_png, for_svg, png, svg
from sae.metrics.firing import Firing, density_histogram

_LINE, _BARS = "#2f7fc1", "#d9772b"
_MOST_POINTS = 400  # per curve; a page of millions of steps must still open
_PERCENT = PercentFormatter(1.0)
# column of metrics.csv, title, how its axis is written
_PANELS = (
    ("fvu", "Variance unexplained (FVU)", None),
    ("loss", "Loss", None),
    ("dead_fraction", "Dead latents", _PERCENT),
    ("l0", "Active latents per token (L0)", None),
    ("lr", "Learning rate", FuncFormatter(lambda value, _: f"{value:g}")),
    ("tokens_per_second", "Tokens per second", EngFormatter(sep="")),
)


def curves_svg(run: Run) -> str | None:
    """The training curves as an `<svg>` element; None when metrics.csv has none of them."""
    panels = [panel for panel in _PANELS if run.curves.get(panel[0])]
    if not panels:
        return None
    with for_svg("curves"):
        rows = -(-len(panels) // 3)
        figure = Figure(figsize=(9.6, 2.3 * rows), layout="constrained")
        axes = figure.subplots(rows, 3, squeeze=False).flatten()
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, panel in zip(axes, panels, strict=False):
            _draw_curve(ax, run, *panel)
        return svg(figure)


def density_svg(firing: Firing) -> str:
    """The density histogram as an `<svg>` element."""
    with for_svg("density"):
        figure = Figure(figsize=(9.6, 2.6), layout="constrained")
        _draw_density(figure.subplots(), firing)
        return svg(figure)


def curves_png(run_dir: str | Path, path: str | Path) -> None:
    """Draw a run's FVU, dead latents and density histogram side by side, on white, as one PNG.

    Raises UserError when `run_dir` is not the folder of a run.
    """
    run = Run.read(run_dir)
    panels = [panel for panel in _PANELS if panel[0] in ("fvu", "dead_fraction")]
    panels = [panel for panel in panels if run.curves.get(panel[0])]
    with for_png():
        count = len(panels) + (run.firing is not None)
        figure = Figure(figsize=(3.5 * max(count, 1), 2.7), dpi=160, layout="constrained")
        figure.get_layout_engine().set(wspace=0.06, w_pad=0.08, h_pad=0.08)
        axes = figure.subplots(1, max(count, 1), squeeze=False).flatten()
        for ax, panel in zip(axes, panels, strict=False):
            _draw_curve(ax, run, *panel)
        if run.firing is not None:
            _draw_density(axes[-1], run.firing)
            axes[-1].set_title("How often latents fire")
        png(figure, path)


def _draw_curve(ax: Axes, run: Run, column: str, title: str, formatter) -> None:
    points = np.array(run.curves[column])
    if len(points) > _MOST_POINTS:  # each point the mean of its share of the run
        points = np.array([part.mean(0) for part in np.array_split(points, _MOST_POINTS)])
    x, y = points.T
    ax.plot(x, y, color=_LINE, linewidth=1.5, marker="." if len(x) < 20 else "")
    held_out = run.held_out.get(column)
    if isinstance(held_out, int | float):
        ax.axhline(held_out, color=_BARS, linewidth=1.2, linestyle=(0, (4, 2)))
        ax.annotate(
            f"held-out {held_out:.3g}",
            (0, held_out),  # under the line's start, where a curve that falls is not
            xycoords=("axes fraction", "data"),
            xytext=(4, -3),
            textcoords="offset points",
            va="top",
            color=_BARS,
        )
    ax.set_title(title)
    ax.set_xlabel(run.x_label)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if column in ("fvu", "loss") and y.min() > 0 and y.max() > 10 * y.min():
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif column in ("fvu", "dead_fraction", "l0", "lr", "tokens_per_second"):
        ax.set_ylim(0, max(y.max() * 1.08, 0.01 if column == "dead_fraction" else 1e-12))
    if formatter:
        ax.yaxis.set_major_formatter(formatter)


def _draw_density(ax: Axes, firing: Firing) -> None:
    histogram = density_histogram(firing)
    edges = 10 ** histogram.edges.numpy()
    ax.stairs(histogram.counts.numpy(), edges, fill=True, color=_BARS, alpha=0.85)
    ax.set_xscale("log")
    ax.set_xlim(0.8 / max(firing.tokens, 1), 1.25)
    ax.set_ylim(0, 1.3 * max(histogram.counts.max().item(), 1))
    ax.set_xlabel("share of held-out tokens a latent fires on")
    ax.set_ylabel("latents")
    never = f"{histogram.never_fired:,} of {len(firing.counts):,} never fired"
    ax.annotate(
        f"{never}\nin {firing.tokens:,} tokens",
        (1, 1),
        xycoords="axes fraction",
        xytext=(-3, -3),
        textcoords="offset points",
        ha="right",
        va="top",
    )
