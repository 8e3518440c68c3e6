"""`sweep.html` and the pictures beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from sae.browser.page import template
from sae.browser.style import for_png, for_svg, png, svg
from sae.browser.sweep_plots import by_setting, over_l0
from sae.files import write_text
from sae.sweep.results import SweepResults, Trained

# column of sweep.csv, heading, how it is written
_COLUMNS = (
    ("held_out_fvu", "held-out FVU", ".4f"),
    ("held_out_l0", "L0", ".1f"),
    ("dead_fraction", "dead", ".2%"),
    ("output_cosine", "output cosine", ".4f"),
    ("kl_sae", "KL", ".4f"),
    ("dictionary_mcc_signed", "MCC", ".4f"),
)
# What a model, or the truth, has to say, the first that there is.
_HARM = ("kl_sae", "output_cosine", "dictionary_mcc_signed")


def write_sweep_report(folder: str | Path, best: dict[str, list[Trained]]) -> Path:
    """Draw `fvu_over_l0.png`, `downstream_over_l0.png` and `settings.png`, write `sweep.html`.

    Args:
        folder: of a finished sweep.
        best: by the file that has its config, the seeds of the best combination at an L0.
    """
    folder, swept = Path(folder), SweepResults.read(folder)
    pictures = []
    for name, title, draw in _pictures(swept):
        with for_png():
            png(draw(), folder / f"{name}.png")
        with for_svg(name):
            pictures.append({"title": title, "svg": Markup(svg(draw()))})
    columns = [some for some in _COLUMNS if any(some[0] in m.figures for m in swept.members)]
    stopped = len(swept.members) - len(swept.trained)
    page = template("sweep.html").render(
        title=swept.name,
        subtitle=f"{len(swept.members)} members on one stream over {', '.join(swept.keys)}"
        + (f"; {stopped} stopped on the way" if stopped else ""),
        best=[_best(swept, file, some) for file, some in best.items()],
        pictures=pictures,
        seeds=[_agreement(name, group) for name, group in swept.seeds.items()],
        columns=[heading for _, heading, _ in columns] + ["stopped"],
        rows=[_row(folder, member, columns) for member in swept.members],
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
    )
    write_text(folder / "sweep.html", page)
    return folder / "sweep.html"


def _pictures(swept: SweepResults):
    """Name, title and drawing of each; none where nothing reached the end."""
    if not swept.trained:
        return
    yield "fvu_over_l0", "Error over L0", lambda: over_l0(swept, "held_out_fvu")
    harm = [name for name in _HARM if any(name in member.figures for member in swept.trained)]
    if harm:
        title = "The truth over L0" if harm[0] == _HARM[-1] else "Harm to the model over L0"
        yield "downstream_over_l0", title, lambda: over_l0(swept, harm[0])
    yield "settings", "What each setting did", lambda: by_setting(swept)


def _best(swept: SweepResults, file: str, seeds: list[Trained]) -> dict[str, str]:
    fvus = [member.fvu for member in seeds]
    spread = f"{min(fvus):.4f} to {max(fvus):.4f}" if len(seeds) > 1 else f"{fvus[0]:.4f}"
    keys = [key for key in swept.keys if key != swept.SEED]
    return {
        "l0": f"{seeds[0].l0:.1f}",
        "settings": swept.named(seeds[0], keys) or seeds[0].name,
        "fvu": spread,
        "file": file,
    }


def _agreement(name: str, group: dict[str, Any]) -> dict[str, str]:
    agreed = group["consensus"]
    return {
        "name": name,
        "count": str(len(group["members"])),
        "pw_mcc": f"{group['pw_mcc_signed']:.3f}",
        "start": f"{group['pw_mcc_signed_start']:.3f}",
        "chance": f"{group['pw_mcc_signed_chance']:.3f}",
        "shared": f"{group['shared_fraction_signed']:.1%}",
        "consensus": f"{agreed['latents']:,}",
        "folder": f"{group['wave']}/consensus/{name}" if agreed["latents"] else "",
    }


def _row(folder: Path, member: Trained, columns: list[tuple[str, str, str]]) -> dict[str, Any]:
    cells = [
        format(member.figures[key], form) if key in member.figures else ""
        for key, _, form in columns
    ]
    page = (folder / member.folder / "report.html").is_file()
    return {
        "name": member.name,
        "page": quote(f"{member.folder}/report.html") if page else "",
        "cells": [*cells, member.stopped],
    }
