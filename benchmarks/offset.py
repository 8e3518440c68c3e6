"""Measure whether a mean far from the origin harms training: `python -m benchmarks.offset`.

Each recipe of `benchmarks.recovery` trains on the world of that benchmark plus a constant vector.
`offset` is the norm of this vector in units of the standard deviation of the samples,
sqrt(E|x - mean|^2). Weights, samples and settings are the same at every offset, so all columns
should be too.

FVU, L0, MCC, dead and silent: as in `benchmarks.recovery`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import results_io
from benchmarks.command import run_command
from benchmarks.config import BenchConfig
from benchmarks.recovery import CONFIG, RECIPES, Ours, train_and_measure
from sae.activations.batch import Batch, Split
from sae.errors import UserError
from sae.files import write_text
from sae.worlds import SparseSuperposition

OFFSETS = (0.0, 5.0, 20.0)
DEFAULT_RECIPES = ("TopK", "BatchTopK", "L1", "JumpReLU", "Gated")
SPREAD_ROWS = 65_536


class OffsetWorld(SparseSuperposition):
    """A `SparseSuperposition` whose samples are shifted by a constant vector.

    Args:
        offset: Norm of the vector in units of the standard deviation of the samples. Its direction
            is random, and the same for all offsets.
        settings: As `SparseSuperposition`.
    """

    def __init__(self, offset: float, **settings: Any) -> None:
        super().__init__(**settings)
        (acts,) = super().block("train", 0, SPREAD_ROWS, 0).acts.values()
        deviation = (acts - acts.mean(0)).double().square().sum(1).mean().sqrt()
        direction = torch.randn(self.d_in, generator=torch.Generator().manual_seed(0))
        self.shift: Tensor = offset * deviation.float() * normalize(direction, dim=0)

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        ((hook, acts),) = super().block(split, index, size, seed).acts.items()
        return Batch({hook: acts + self.shift.to(acts.device)})


@dataclass(frozen=True)
class Row:
    """One run."""

    recipe: str
    steps: int
    offset: float
    seed: int
    fvu: float
    l0: float
    mcc: float
    dead: float
    silent: float
    cpu_ms: float
    lr: float
    threads: int
    device: str
    versions: str
    commit: str
    date: str
    command: str

    @property
    def key(self) -> tuple:
        """Identifies a run; a later run with the same key replaces it."""
        return self.recipe, self.steps, self.offset, self.seed


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offset", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--recipe", default=",".join(DEFAULT_RECIPES), help="recipes, separated by commas"
    )
    parser.add_argument(
        "--offset", default=",".join(f"{x:g}" for x in OFFSETS), help="offsets, separated by commas"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: as many as the config has")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results_io.REPO / "benchmarks" / "results")
    args = parser.parse_args(argv)
    if unknown := set(args.recipe.split(",")) - set(RECIPES):
        raise UserError(f"--recipe {unknown.pop()} is not known; choose among {', '.join(RECIPES)}")
    try:
        args.offsets = [float(x) for x in args.offset.split(",")]
    except ValueError:
        raise UserError(f"--offset {args.offset}: give numbers separated by commas") from None
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    config = BenchConfig.read(CONFIG, [f"trainer.max_steps={args.steps}"] if args.steps else [])
    settings = config.data["source"]["init_args"]
    for name in args.recipe.split(","):
        for offset in args.offsets:
            make = lambda *args, recipe=RECIPES[name]: Ours(config, recipe, *args)
            result = train_and_measure(config, OffsetWorld(offset, **settings), make, args.seed)
            row = Row(
                recipe=name,
                steps=config.tokens // config.data["batch_size"],
                offset=offset,
                seed=args.seed,
                **asdict(result),
                threads=args.threads,
                device=results_io.cpu_name(),
                versions=results_io.versions([]),
                commit=results_io.commit(),
                date=results_io.today(),
                command=results_io.command_line("benchmarks.offset", argv),
            )
            write(args.out, row)
            sys.stdout.write(line(row) + "\n")
            sys.stdout.flush()


def write(folder: Path, row: Row) -> None:
    """Add a row to the CSV, replacing an earlier run with its key, and rewrite the page."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"offset_cpu_{row.date}.csv"
    latest = {r.key: r for r in [*results_io.read_rows(file, Row), row]}
    order = list(RECIPES)
    place = lambda row: (row.steps, order.index(row.recipe), row.seed, row.offset)
    rows = sorted(latest.values(), key=place)
    results_io.write_rows(file, rows)
    write_text(file.with_suffix(".md"), "\n".join(page(rows)) + "\n")


HEAD = ("recipe", "steps", "offset", "seed", "FVU", "L0", "MCC", "dead", "silent")


def line(row: Row) -> str:
    """Return the line of a row in a Markdown table."""
    return (
        f"| {row.recipe} | {row.steps} | {row.offset:g} | {row.seed} | {row.fvu:.4f} | "
        f"{row.l0:.2f} | {row.mcc:.3f} | {row.dead:.1%} | {row.silent:.1%} |"
    )


def page(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown page."""
    lines = ["# Activations with a mean far from the origin", ""]
    lines += ["`benchmarks/offset.py` explains the columns.", ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|---|" + "--:|" * (len(HEAD) - 1)]
    lines += [line(row) for row in rows]
    return [*lines, *results_io.provenance_lines(rows)]


if __name__ == "__main__":
    run_command(main)
