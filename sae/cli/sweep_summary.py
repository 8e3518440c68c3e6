"""What a sweep leaves when all are done: `sweep.csv`, `seeds.json`, `best.yaml`, its page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.table import Table

from sae import legacy
from sae.browser.sweep_page import write_sweep_report
from sae.files import write_text
from sae.lightning.artifacts import printed
from sae.lightning.seed_agreement import table as seeds_table
from sae.runs.run_dir import RunDir
from sae.sweep.results import SweepResults, Trained

# Of a member's summary, besides its held-out figures. Nothing here is of the clock: a sweep that
# was killed and resumed ends with the same table.
_TRAINING = ("steps", "tokens", "fvu", "dead_fraction", "learning_rate")


def gather(folder: Path, keys: list[str], waves: list[dict[str, dict[str, Any]]]) -> str:
    """Write all that, from the summaries of the members; returns what to print."""
    rows, seeds = [], {}
    for number, members in enumerate(waves, 1):
        wave = RunDir(folder / f"wave-{number}")
        if wave.summary.is_file():  # not of a trial of Ray's that failed
            found = json.loads(wave.summary.read_text(encoding="utf-8")).get("seeds", {})
            seeds |= {name: {"wave": wave.path.name, **group} for name, group in found.items()}
        for name, settings in members.items():
            place = f"wave-{number}/{name}"
            summary = json.loads(RunDir(folder / place).summary.read_text(encoding="utf-8"))
            held_out = summary.get("held_out", {})
            rows.append(
                {"member": name, "folder": place, "stopped": summary.get("stopped", "")}
                | {key: settings.get(key) for key in keys}
                | {key: summary[key] for key in _TRAINING if key in summary}
                | {f"held_out_{key}": held_out[key] for key in ("fvu", "l0") if key in held_out}
                | {k: v for k, v in held_out.items() if k not in ("fvu", "l0", "tokens")}
            )
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "sweep.csv", text.getvalue())
    if seeds:
        write_text(folder / "seeds.json", json.dumps(seeds, indent=2) + "\n")
    swept = SweepResults.read(folder)
    best = _write_best(folder, swept)
    page = write_sweep_report(folder, best)
    return (
        printed(_table(swept))
        + (printed(seeds_table(seeds)) if seeds else "")
        + "".join(
            f"{label:<9}{path}\n"
            for label, path in (
                ("figures", folder / "sweep.csv"),
                ("page", page),
                *(
                    ("best", f"{folder / file} (L0 {some[0].l0:.1f})")
                    for file, some in best.items()
                ),
            )
        )
    )


def _write_best(folder: Path, swept: SweepResults) -> dict[str, list[Trained]]:
    """A config that `fit` takes for the best at each L0, `best-l0-16.yaml` and so on; `best.yaml`
    is the one of the lowest error, which with several L0s is most likely at the highest."""
    base = legacy.config(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    groups = swept.best()
    found = {f"best-l0-{_number(seeds[0].l0)}.yaml": seeds for seeds in groups}
    if groups:
        lowest = min(groups, key=lambda seeds: fmean(member.fvu for member in seeds))
        found = ({} if len(groups) == 1 else found) | {"best.yaml": lowest}
    for file, seeds in found.items():
        member = seeds[0]
        place = folder / member.folder
        config = legacy.config(yaml.safe_load(RunDir(place).config.read_text(encoding="utf-8")))
        config |= {"name": f"{swept.name}-{Path(file).stem}", "runs": base["runs"]}
        says = (
            f"# {member.name} of {swept.name}: held-out FVU {member.fvu:.4f} at L0 {member.l0:.1f},"
            f"\n# the lowest of {len(swept.trained)} members that reached the end"
            f"{'' if len(groups) == 1 or file == 'best.yaml' else ', at about that L0'}\n"
        )
        write_text(folder / file, says + yaml.safe_dump(config, sort_keys=False))
    return found


def _number(l0: float) -> str:
    """For a file's name: 4, 7.7, 128."""
    return f"{l0:.0f}" if l0 >= 10 else f"{l0:.1f}".removesuffix(".0")


def _table(swept: SweepResults) -> Table:
    """A row for each member, in order."""
    table = Table(title=f"{swept.name}: {len(swept.members)} members", title_justify="left")
    table.add_column("")
    for heading in ("FVU", "held out", "L0", "dead"):
        table.add_column(heading, justify="right")
    for member in swept.members:
        if member.stopped:
            table.add_row(member.name, member.stopped)
            continue
        figures = member.figures
        table.add_row(
            member.name,
            f"{figures['fvu']:.4f}",
            f"{member.fvu:.4f}",
            f"{member.l0:.1f}",
            f"{figures['dead_fraction']:.2%}",
        )
    return table
