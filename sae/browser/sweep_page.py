"""Write `sweep.html`, the page about a sweep, and the PNGs of its plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from matplotlib.figure import Figure

from sae.browser.page import load_template
from sae.browser.style import png_style, svg_style, to_svg, write_png
from sae.browser.sweep_plots import plot_over_l0, plot_settings, setting_keys
from sae.files import write_text
from sae.metrics.metric import Metric
from sae.metrics.registry import find_metric, find_metrics
from sae.sweep.results import MemberResult, SweepResults

# Columns of sweep.csv in the table of all members.
_COLUMNS = (
    "held_out_fvu",
    "held_out_l0",
    "dead_fraction",
    "output_cosine",
    "kl_sae",
    "dictionary_mcc_signed",
    "dictionary_mcc_signed_chance",
)
# Metrics that judge an SAE by more than its error; the first that was measured is plotted.
_DOWNSTREAM = ("kl_sae", "output_cosine", "dictionary_mcc_signed")


@dataclass(frozen=True)
class _Plot:
    """A plot of the sweep: `draw` makes the PNG; the page shows each of `panels` as an SVG."""

    name: str
    title: str
    draw: Callable[[], Figure]
    panels: Sequence[Callable[[], Figure]]


def write_sweep_report(folder: str | Path, best: dict[str, list[MemberResult]]) -> Path:
    """Write `sweep.html`, `fvu_over_l0.png`, `downstream_over_l0.png` and `settings.png`.

    Args:
        folder: Folder of a finished sweep.
        best: For each file with a best config, the seeds of the combination it describes.

    Returns:
        The path of `sweep.html`.
    """
    folder, results = Path(folder), SweepResults.read(folder)
    plots = []
    for plot in _plots(results):
        with png_style():
            write_png(plot.draw(), folder / f"{plot.name}.png")
        panels = []
        for number, draw in enumerate(plot.panels):
            with svg_style(f"{plot.name}-{number}"):
                panels.append(Markup(to_svg(draw())))
        plots.append({"title": plot.title, "panels": panels})
    measured = {name for member in results.members for name in member.metrics}
    columns = find_metrics(name for name in _COLUMNS if name in measured)
    stopped = len(results.members) - len(results.finished)
    page = load_template("sweep.html").render(
        title=results.name,
        subtitle=f"{len(results.members)} members on one stream over {', '.join(results.keys)}"
        + (f"; {stopped} stopped before the end" if stopped else ""),
        best=[_best_row(results, file, seeds) for file, seeds in best.items()],
        plots=plots,
        seeds=[_seed_row(name, group) for name, group in results.seed_groups.items()],
        columns=[metric.short for metric in columns] + ["stopped"],
        rows=[_member_row(folder, member, columns) for member in results.members],
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
    )
    write_text(folder / "sweep.html", page)
    return folder / "sweep.html"


def _plots(results: SweepResults) -> Iterator[_Plot]:
    """Yield the plots of a sweep; there are none if no member reached the end."""
    if not results.finished:
        return
    draw = partial(plot_over_l0, results, "held_out_fvu")
    yield _Plot("fvu_over_l0", "Error over L0", draw, [draw])
    measured = {name for member in results.finished for name in member.metrics}
    downstream = next((name for name in _DOWNSTREAM if name in measured), None)
    if downstream is not None:
        of_world = downstream == "dictionary_mcc_signed"
        title = "Recovered true features over L0" if of_world else "Damage to the model over L0"
        draw = partial(plot_over_l0, results, downstream)
        yield _Plot("downstream_over_l0", title, draw, [draw])
    panels = [partial(plot_settings, results, [key]) for key in setting_keys(results)]
    yield _Plot("settings", "Effect of each setting", partial(plot_settings, results), panels)


def _best_row(results: SweepResults, file: str, seeds: list[MemberResult]) -> dict[str, str]:
    fvus = [member.fvu for member in seeds]
    spread = f"{min(fvus):.4f} to {max(fvus):.4f}" if len(seeds) > 1 else f"{fvus[0]:.4f}"
    return {
        "l0": f"{seeds[0].l0:.1f}",
        "settings": results.describe(seeds[0], results.keys_without_seed) or seeds[0].name,
        "fvu": spread,
        "file": file,
    }


def _seed_row(name: str, group: dict[str, Any]) -> dict[str, str]:
    consensus = group["consensus"]
    text = lambda name: find_metric(name).text(group[name])
    return {
        "name": name,
        "count": str(len(group["members"])),
        "pw_mcc": text("pw_mcc_signed"),
        "start": text("pw_mcc_signed_start"),
        "chance": text("pw_mcc_signed_chance"),
        "shared": text("shared_fraction_signed"),
        "consensus": f"{consensus['latents']:,}",
        "folder": f"{group['wave']}/consensus/{name}" if consensus["latents"] else "",
    }


def _member_row(folder: Path, member: MemberResult, columns: list[Metric]) -> dict[str, Any]:
    cells = [
        metric.text(member.metrics[metric.name]) if metric.name in member.metrics else ""
        for metric in columns
    ]
    has_page = (folder / member.folder / "report.html").is_file()
    return {
        "name": member.name,
        "page": quote(f"{member.folder}/report.html") if has_page else "",
        "cells": [*cells, member.stopped],
    }
