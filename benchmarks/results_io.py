"""Record where and how a benchmark ran, and keep its rows as CSV and Markdown."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from sae.files import write_text

R = TypeVar("R")
REPO = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One run of `benchmarks.quality`, which explains the columns."""

    date: str
    trainer: str
    variant: str
    seed: int
    held_out_fvu: float
    train_fvu: float
    l0: float
    dead: float
    silent_held_out: float
    ms_p50: float
    ms_p20: float
    ms_p80: float
    cpu_ms_p50: float
    tokens: int
    batch: int
    lr: float
    d_in: int
    d_sae: int
    k: int
    dead_after: int
    config: str
    model: str
    device: str
    threads: int
    versions: str
    commit: str
    command: str

    @property
    def key(self) -> tuple:
        """Identifies a run; a later run with the same key replaces it."""
        return (
            self.trainer,
            self.variant,
            self.seed,
            self.tokens,
            self.config,
        )


def today() -> str:
    """Return the date in ISO format."""
    return datetime.date.today().isoformat()


def cpu_name() -> str:
    """Return the model of the processor, the system and the architecture."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {platform.system()} {platform.machine()}"


def versions(distributions: Iterable[str]) -> str:
    """Return the versions of Python, torch and those distributions that are installed."""
    known = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in distributions:
        try:
            known.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(known)


def commit() -> str:
    """Return the commit of the checkout, with `+` if `sae` or `kernels` differ from it.

    Returns an empty string outside of a git repository, or if git is not installed.
    """

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "sae", "kernels")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def command_line(module: str, arguments: list[str]) -> str:
    """Return the shell command that runs a module with arguments."""
    return shlex.join(["python", "-m", module, *arguments])


def read_rows(file: Path, kind: type[R] = Row) -> list[R]:
    """Return the rows of a CSV file, or an empty list if there is no such file.

    Args:
        file: The CSV file.
        kind: Dataclass of the rows, with fields of type str, int and float.
    """
    if not file.is_file():
        return []
    cast = {"str": str, "int": int, "float": float}
    kinds = {field.name: cast[field.type] for field in fields(kind)}
    with file.open(encoding="utf-8", newline="") as handle:
        return [
            kind(**{name: kinds[name](value) for name, value in row.items()})
            for row in csv.DictReader(handle)
        ]


def write_rows(file: Path, rows: list[R]) -> None:
    """Write rows as CSV, atomically."""
    lines = [",".join(field.name for field in fields(rows[0]))]
    lines += [",".join(_cell(value) for value in asdict(r).values()) for r in rows]
    write_text(file, "\n".join(lines) + "\n")


def add_row(file: Path, row: Row) -> list[Row]:
    """Add a row to the CSV, replacing an earlier row with the same key; return all rows."""
    rows = [known for known in read_rows(file) if known.key != row.key] + [row]
    write_rows(file, rows)
    return rows


def provenance_lines(rows: list[Any]) -> list[str]:
    """Return Markdown lines with the device, versions, commits and commands of rows."""
    lines = ["", "## How this was measured", ""]
    for title, values in (
        ("Device", (f"{row.device}, threads: {row.threads}" for row in rows)),
        ("Versions", (row.versions for row in rows)),
        ("Commit and date", (f"{row.commit}, {row.date}" for row in rows)),
        ("Command", (f"`{row.command}`" for row in rows)),
    ):
        lines += [f"- {title}: {value}" for value in dict.fromkeys(values)]
    return lines


def _cell(value: object) -> str:
    text = f"{value:.9g}" if isinstance(value, float) else str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text


HEAD = (
    "trainer",
    "variant",
    "lr",
    "held-out FVU",
    "train FVU",
    "L0",
    "dead",
    "silent on held-out",
    "ms/step p50 (p20-p80)",
    "CPU ms/step",
)


def table_lines(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown table, lowest held-out FVU first.

    The lowest held-out FVU of each trainer is bold.
    """
    rows = sorted(rows, key=lambda row: row.held_out_fvu)
    best: dict[str, float] = {}
    for row in rows:
        best.setdefault(row.trainer, row.held_out_fvu)
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|" + "--:|" * (len(HEAD) - 2)]
    for row in rows:
        fvu = f"{row.held_out_fvu:.4f}"
        cells = (
            row.trainer,
            row.variant + (f", seed {row.seed}" if row.seed else ""),
            f"{row.lr:.2e}",
            f"**{fvu}**" if row.held_out_fvu == best[row.trainer] else fvu,
            f"{row.train_fvu:.4f}",
            f"{row.l0:.2f}",
            f"{row.dead:.1%}",
            f"{row.silent_held_out:.1%}",
            f"{row.ms_p50:.0f} ({row.ms_p20:.0f}-{row.ms_p80:.0f})",
            f"{row.cpu_ms_p50:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_page(file: Path, rows: list[Row]) -> None:
    """Write a Markdown page: a table for each config and length, then how they were measured."""
    lines = [
        f"# Quality at equal tokens, CPU, {rows[-1].date}",
        "",
        "Same activations, same order, same number of tokens; lower FVU is better.",
        "`benchmarks/quality.py` explains the columns, and `benchmarks/peers.py` how each trainer",
        "was driven. The lowest held-out FVU of each trainer is bold. The learning rate and batch",
        "size of the default config were chosen on this model and text, so the `tuned` rows give",
        "the other trainers our schedule and several learning rates, up to ours.",
    ]
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.config, row.tokens, row.batch), []).append(row)
    for (config, tokens, batch), group in groups.items():
        first = group[0]
        lines += ["", f"## {config}, {tokens:,} tokens, {batch} per step", ""]
        lines += [
            f"Width {first.d_in}, {first.d_sae} latents, k {first.k}, dead after "
            f"{first.dead_after:,} tokens.",
            "",
            *table_lines(group),
        ]
        ours = [row.model for row in group if row.trainer == "ours"]
        lines += [f"\nOurs as configured: `{model}`" for model in dict.fromkeys(ours)]
    write_text(file, "\n".join([*lines, *provenance_lines(rows)]) + "\n")
