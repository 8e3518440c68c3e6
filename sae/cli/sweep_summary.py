"""Write the results of a finished sweep: `sweep.csv`, `seeds.json`, best configs and its page."""

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
from sae.cli.run_tables import as_text, seeds_table
from sae.files import write_text
from sae.metrics.registry import SAE_COLUMNS, find_metrics
from sae.runs.run_dir import RunDir
from sae.runs.run_files import read_json_object
from sae.sweep.results import MemberResult, SweepResults
from sae.sweep.spec import SweepSpec

# Keys of a member's summary that go into sweep.csv beside its held-out metrics. None of them is a
# time: a sweep that was killed and resumed ends with the same table.
_TRAINING_KEYS = ("steps", "tokens", "fvu", "dead_fraction", "learning_rate")


def write_results(folder: Path, spec: SweepSpec) -> str:
    """Write the results of a sweep from the summaries of its members.

    Args:
        folder: Folder of the sweep.
        spec: Settings of the sweep.

    Returns:
        Tables and paths to print.
    """
    rows: list[dict[str, Any]] = []
    seed_groups: dict[str, dict[str, Any]] = {}
    for number, members in enumerate(spec.waves, 1):
        wave = RunDir(folder / f"wave-{number}")
        if wave.summary.is_file():  # a trial of Ray Tune that failed has none
            groups = read_json_object(wave.summary).get("seeds", {})
            seed_groups |= {
                name: {"wave": wave.path.name, **group} for name, group in groups.items()
            }
        for name, settings in members.items():
            path = f"wave-{number}/{name}"
            summary = read_json_object(RunDir(folder / path).summary)
            held_out = summary.get("held_out", {})
            rows.append(
                {"member": name, "folder": path, "stopped": summary.get("stopped", "")}
                | {key: settings.get(key) for key in spec.keys}
                | {key: summary[key] for key in _TRAINING_KEYS if key in summary}
                | {f"held_out_{key}": held_out[key] for key in ("fvu", "l0") if key in held_out}
                | {k: v for k, v in held_out.items() if k not in ("fvu", "l0", "tokens")}
            )
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "sweep.csv", text.getvalue())
    if seed_groups:
        write_text(folder / "seeds.json", json.dumps(seed_groups, indent=2) + "\n")
    results = SweepResults.read(folder)
    best = _write_best_configs(folder, results)
    page = write_sweep_report(folder, best)
    paths = [("metrics", folder / "sweep.csv"), ("page", page)]
    paths += [("best", f"{folder / file} (L0 {seeds[0].l0:.1f})") for file, seeds in best.items()]
    return (
        as_text(_members_table(results))
        + (as_text(seeds_table(seed_groups)) if seed_groups else "")
        + "".join(f"{label:<9}{path}\n" for label, path in paths)
    )


def _write_best_configs(folder: Path, results: SweepResults) -> dict[str, list[MemberResult]]:
    """Write a config for `fit` for the best member at each L0: `best-l0-16.yaml` and so on.

    `best.yaml` is the one with the lowest error. If the sweep covers several L0s, that is most
    likely the one with the highest L0.

    Returns:
        For each file, the seeds of the combination it describes; it has the config of the first.
    """
    base = legacy.config(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    groups = results.best()
    files = {f"best-l0-{_show_l0(seeds[0].l0)}.yaml": seeds for seeds in groups}
    if groups:
        lowest = min(groups, key=lambda seeds: fmean(member.fvu for member in seeds))
        files = ({} if len(groups) == 1 else files) | {"best.yaml": lowest}
    for file, seeds in files.items():
        member = seeds[0]
        config_file = RunDir(folder / member.folder).config
        config = legacy.config(yaml.safe_load(config_file.read_text(encoding="utf-8")))
        config |= {"name": f"{results.name}-{Path(file).stem}", "runs": base["runs"]}
        comment = (
            f"# {member.name} of {results.name}: held-out FVU {member.fvu:.4f} at L0 "
            f"{member.l0:.1f},\n# the lowest of {len(results.finished)} members that reached the "
            f"end{'' if len(groups) == 1 or file == 'best.yaml' else ', at about that L0'}\n"
        )
        write_text(folder / file, comment + yaml.safe_dump(config, sort_keys=False))
    return files


def _show_l0(l0: float) -> str:
    """Return an L0 for the name of a file, such as 4, 7.7 or 128."""
    return f"{l0:.0f}" if l0 >= 10 else f"{l0:.1f}".removesuffix(".0")


def _members_table(results: SweepResults) -> Table:
    table = Table(title=f"{results.name}: {len(results.members)} members", title_justify="left")
    table.add_column("")
    columns = find_metrics(SAE_COLUMNS)
    for metric in columns:
        table.add_column(metric.short, justify="right")
    for member in results.members:
        if member.stopped:
            table.add_row(member.name, member.stopped)
            continue
        values = member.metrics | {"l0": member.l0}
        table.add_row(member.name, *(metric.text(values[metric.name]) for metric in columns))
    return table
