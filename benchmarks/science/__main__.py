"""Repeat published experiments: `python -m benchmarks.science [TARGET ...]`.

Each target repeats a published experiment. A row is one measured quantity: the published value,
ours (the median over seeds, and the spread from lowest to highest), the bound that we demand, and
whether every seed satisfies it. A target's rows replace its earlier ones in
`<out>/science_cpu_<date>.csv`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import benchmarks.science
from benchmarks import results_io
from benchmarks.command import run_command
from benchmarks.science.target import Measurement, Target
from sae.errors import UserError
from sae.files import write_text


@dataclass(frozen=True)
class Row:
    """One measured quantity of a target."""

    target: str
    source: str
    what: str
    published: str
    ours: str
    spread: str
    seeds: int
    bar: str
    verdict: str
    seconds: str
    threads: int
    device: str
    versions: str
    commit: str
    date: str
    command: str


def targets() -> dict[str, Target]:
    """Return all targets by name, in the order of the names of their files."""
    targets: dict[str, Target] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(benchmarks.science.__path__)):
        if module != "__main__":
            loaded = importlib.import_module(f"benchmarks.science.{module}")
            targets |= {target.name: target for target in getattr(loaded, "TARGETS", [])}
    return targets


def arguments(argv: list[str], known: dict[str, Target]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.science", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    listed = "; ".join(f"{name}: {target.source}" for name, target in known.items())
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all. {listed}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=results_io.REPO / "benchmarks" / "results")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.targets if name not in known]:
        raise UserError(f"target {unknown[0]} is not known; choose among {', '.join(known)}")
    return args


def main(argv: list[str]) -> None:
    known = targets()
    args = arguments(argv, known)
    torch.set_num_threads(args.threads)
    for name in args.targets or known:
        rows: list[Row] = []
        start = time.perf_counter()
        for measurement in known[name].run():
            seconds = time.perf_counter() - start
            rows.append(_row(known[name], measurement, seconds, args, argv))
            sys.stdout.write(line(rows[-1]) + "\n")
            sys.stdout.flush()
            start = time.perf_counter()
        write(args.out, rows)


def _row(
    target: Target,
    measurement: Measurement,
    seconds: float,
    args: argparse.Namespace,
    argv: list[str],
) -> Row:
    return Row(
        target=target.name,
        source=target.source,
        what=measurement.what,
        published=measurement.published,
        ours=f"{measurement.median:.4g}",
        spread=measurement.spread,
        seeds=len(measurement.values),
        bar=measurement.bar,
        verdict=measurement.verdict,
        seconds=f"{seconds:.0f}",
        threads=args.threads,
        device=results_io.cpu_name(),
        versions=results_io.versions(["numpy", "scipy", "scikit-learn"]),
        commit=results_io.commit(),
        date=results_io.today(),
        command=results_io.command_line("benchmarks.science", argv),
    )


def write(folder: Path, rows: list[Row]) -> None:
    """Replace the earlier rows of a target from the same day, and rewrite the page."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"science_cpu_{rows[0].date}.csv"
    others = [r for r in results_io.read_rows(file, Row) if r.target != rows[0].target]
    # The sort is stable: quantities of a target keep their order.
    all_rows = sorted([*others, *rows], key=lambda row: row.target)
    results_io.write_rows(file, all_rows)
    write_text(file.with_suffix(".md"), "\n".join(page(all_rows)) + "\n")


HEAD = (
    *("target", "quantity", "published", "ours", "spread", "seeds"),
    *("bound", "satisfied", "seconds"),
)


def line(row: Row) -> str:
    """Return the line of a row in a Markdown table."""
    cells = (row.target, row.what, row.published, row.ours, row.spread, row.seeds, row.bar)
    return "| " + " | ".join(str(cell) for cell in (*cells, row.verdict, row.seconds)) + " |"


def page(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown page."""
    lines = [
        "# Published experiments, repeated",
        "",
        "The modules in `benchmarks/science/` describe the targets. `ours` is the median over",
        "seeds; `satisfied` says whether every seed is within the bound.",
        "",
    ]
    lines += ["| " + " | ".join(HEAD) + " |", "|---|---|" + "--:|" * 4 + "---|---|--:|"]
    lines += [line(row) for row in rows]
    lines += ["", "## Sources", ""]
    lines += [f"- {name}: {text}" for name, text in {r.target: r.source for r in rows}.items()]
    return [*lines, *results_io.provenance_lines(rows)]


if __name__ == "__main__":
    run_command(main)
