"""The table that `evaluate` prints: metrics of a run with intervals and chance, and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sae.evaluation.with_baselines import Evaluation
from sae.metrics.interval import MIN_UNITS
from sae.metrics.metric import DIRECTIONS, Metric
from sae.metrics.registry import by_section

WIDTH = 100
"""Columns of a terminal into which the table with five baselines fits."""

CAPTION = (
    f"{DIRECTIONS}. 95%: interval over independent documents, latents or features.\n"
    "chance: the metric of something untrained, such as random directions or training samples.\n"
    "An empty cell does not apply."
)
FEW = f"n = ...: fewer than the {MIN_UNITS} documents, latents or features that an interval needs."


def evaluation_table(name: str, evaluation: Evaluation) -> Table:
    """Return a table with a row for each declared metric of the run or of a baseline.

    Args:
        name: name of the run, for the title.
        evaluation: metrics of the run and of its baselines.
    """
    metrics, baselines = evaluation.metrics, evaluation.baselines
    caption = CAPTION
    if any(name.endswith("_units") for name in metrics):
        caption += f"\n{FEW}"
    if "mis" in metrics:
        caption += f"\nInterpretability compares samples by {evaluation.similarity}."
    table = Table(
        title=f"{name}: held-out metrics",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=caption,
        caption_justify="left",
    )
    table.add_column("")
    headings = [evaluation.headings[name] for name in baselines]
    for column in ("this\nrun", "95%", "chance", *headings):
        table.add_column(column, justify="right", no_wrap=True)
    for section, declared in by_section():
        rows = [
            _row(metric, metrics, list(baselines.values()))
            for metric in declared
            if metric.in_table
        ]
        rows = [row for row in rows if any(row[1:])]
        if not rows:
            continue
        table.add_row()
        table.add_row(f"[bold]{section}[/bold]")
        for row in rows:
            table.add_row(*row)
    return table


def _row(
    metric: Metric, metrics: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the cells of a metric: label, value, interval, chance, value of each baseline."""

    def text(values: Mapping[str, Any], key: str) -> str:
        value = values.get(key)
        return "" if value is None else metric.text(value)

    low, high = text(metrics, f"{metric.name}_low"), text(metrics, f"{metric.name}_high")
    units = metrics.get(f"{metric.name}_units")
    without_interval = "" if units is None else f"n = {units}"
    return [
        metric.arrow_label,
        text(metrics, metric.name),
        f"{low} {high}" if low else without_interval,
        text(metrics, f"{metric.name}_chance"),
        *(text(values, metric.name) for values in baselines),
    ]
