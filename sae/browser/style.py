"""The style of all plots, as SVG inside a page or as PNG on a white background."""

from __future__ import annotations

import io
import os
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# In SVG the page's text color replaces this color, so that one plot serves light and dark pages.
INK = "#010203"
COLORS = ("#2f7fc1", "#d9772b", "#3a9a5b", "#a34fb0", "#8c6d31", "#c0392b", "#5b6770", "#17a2a2")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "legend.fontsize": 8.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
    ),
    "grid.color": INK,
}


def svg_style(salt: str) -> AbstractContextManager[None]:
    """Return the context in which to draw a figure for `to_svg`.

    Args:
        salt: Any text that differs between the plots of one page, so that their ids differ.
    """
    return matplotlib.rc_context({**STYLE, "svg.hashsalt": salt})


def png_style() -> AbstractContextManager[None]:
    """Return the context in which to draw a figure for `write_png`: dark on white."""
    ink = {key: "#222222" for key, value in STYLE.items() if value == INK}
    return matplotlib.rc_context({**STYLE, **ink, "figure.facecolor": "white"})


def write_png(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_svg(figure: Figure) -> str:
    """Return a figure as an `<svg>` element that takes the text color and the font of its page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = text.replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif")
    # Names of groups repeat between the plots of one page, and nothing refers to them.
    return re.sub(r'<g id="[^"]*"', "<g", text)


def legend_above(ax: Axes, width: int = 44) -> int:
    """Put the legend of `ax` above it, where it covers no curve; return its number of rows.

    Args:
        ax: Axes with at least one labeled artist.
        width: Characters that fit beside each other over the axes.
    """
    handles, labels = ax.get_legend_handles_labels()
    columns = max(1, min(len(labels), width // (max(map(len, labels)) + 5)))
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        borderpad=0,
        frameon=False,
        ncols=columns,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.2,
    )
    return -(-len(labels) // columns)
