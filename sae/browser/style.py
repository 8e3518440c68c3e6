"""How pictures look: one style, as SVG inside a page or as PNG on white."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

# SVG ink that the page's own text colour replaces, so one picture serves light and dark.
INK = "#010203"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
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


def for_svg(salt: str):
    """A context to draw in, for `svg`; `salt` tells the pictures of one page apart."""
    return matplotlib.rc_context({**STYLE, "svg.hashsalt": salt})


def for_png():
    """A context to draw in, for `png`: dark ink on white."""
    ink = {key: "#222222" for key, value in STYLE.items() if value == INK}
    return matplotlib.rc_context({**STYLE, **ink, "figure.facecolor": "white"})


def png(figure: Figure, path: str | Path) -> None:
    """Write a figure, whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def svg(figure: Figure) -> str:
    """A figure as an `<svg>` element in the page's own ink and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = text.replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif")
    # Group names repeat between the pictures of one page; nothing refers to them.
    return re.sub(r'<g id="[^"]*"', "<g", text)
