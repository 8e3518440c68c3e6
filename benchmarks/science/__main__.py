"""The claim in three steps, measured: `python -m benchmarks.science [TARGET ...]`.

Each target runs a published experiment anew. A row is a figure: the published value, ours (the
median over seeds and the spread from lowest to highest), the bar it is held to, and whether every
seed keeps it. A target's rows replace its earlier ones in `<out>/science_cpu_<date>.csv`.
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
from benchmarks import results_io as record
from benchmarks.science.target import Figure, Target
from sae.errors import UserError
from sae.files import write_text


@dataclass(frozen=True)
class Row:
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
    """All of them, by name, in the order of the files' names."""
    found: dict[str, Target] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(benchmarks.science.__path__)):
        if module != "__main__":
            loaded = importlib.import_module(f"benchmarks.science.{module}")
            found |= {target.name: target for target in getattr(loaded, "TARGETS", [])}
    return found


def arguments(argv: list[str], known: dict[str, Target]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.science", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    listed = "; ".join(f"{name}: {target.source}" for name, target in known.items())
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"left out: all. {listed}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=record.REPO / "benchmarks" / "results")
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
        for figure in known[name].run():
            seconds = time.perf_counter() - start
            rows.append(_row(known[name], figure, seconds, args, argv))
            sys.stdout.write(line(rows[-1]) + "\n")
            sys.stdout.flush()
            start = time.perf_counter()
        write(args.out, rows)


def _row(
    target: Target, figure: Figure, seconds: float, args: argparse.Namespace, argv: list[str]
) -> Row:
    return Row(
        target=target.name,
        source=target.source,
        what=figure.what,
        published=figure.published,
        ours=f"{figure.median:.4g}",
        spread=figure.spread,
        seeds=len(figure.values),
        bar=figure.bar,
        verdict=figure.verdict,
        seconds=f"{seconds:.0f}",
        threads=args.threads,
        device=record.cpu(),
        versions=record.versions(["numpy", "scipy", "scikit-learn"]),
        commit=record.commit(),
        date=record.today(),
        command=record.command("benchmarks.science", argv),
    )


def write(folder: Path, rows: list[Row]) -> None:
    """Put a target's rows in place of its earlier ones of the day, and write the page anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"science_cpu_{rows[0].date}.csv"
    kept = [row for row in record.read(file, Row) if row.target != rows[0].target] + rows
    kept.sort(key=lambda row: row.target)  # stable: figures keep their order
    record.write(file, kept)
    write_text(file.with_suffix(".md"), "\n".join(page(kept)) + "\n")


HEAD = ("target", "figure", "published", "ours", "spread", "seeds", "bar", "kept", "seconds")


def line(row: Row) -> str:
    cells = (row.target, row.what, row.published, row.ours, row.spread, row.seeds, row.bar)
    return "| " + " | ".join(str(cell) for cell in (*cells, row.verdict, row.seconds)) + " |"


def page(rows: list[Row]) -> list[str]:
    lines = [
        "# The three steps, published and ours",
        "",
        "What each target is stands in `benchmarks/science/`. `ours` is the median over",
        "seeds; `kept` holds for every one of them.",
        "",
    ]
    lines += ["| " + " | ".join(HEAD) + " |", "|---|---|" + "--:|" * 4 + "---|---|--:|"]
    lines += [line(row) for row in rows]
    lines += ["", "## Sources", ""]
    lines += [f"- {name}: {text}" for name, text in {r.target: r.source for r in rows}.items()]
    return [*lines, *record.how(rows)]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
