"""Where and how a benchmark ran, and its rows on disk as CSV and as Markdown."""

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
    """One run; `benchmarks.quality` says what its figures are."""

    date: str
    contender: str
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
        """What a later run of the same thing replaces."""
        return (
            self.contender,
            self.variant,
            self.seed,
            self.tokens,
            self.config,
        )


def today() -> str:
    return datetime.date.today().isoformat()


def cpu() -> str:
    """Model of the processor and how many of its cores there are."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {platform.system()} {platform.machine()}"


def versions(distributions: Iterable[str]) -> str:
    known = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in distributions:
        try:
            known.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(known)


def commit() -> str:
    """Of the checkout, with `+` when tracked files differ from it; empty outside of git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "sae", "kernels")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def command(module: str, arguments: list[str]) -> str:
    return shlex.join(["python", "-m", module, *arguments])


def read(file: Path, kind: type[R] = Row) -> list[R]:
    """Rows of a CSV; `kind` is a dataclass of str, int and float. None where there is no file."""
    if not file.is_file():
        return []
    cast = {"str": str, "int": int, "float": float}
    kinds = {field.name: cast[field.type] for field in fields(kind)}
    with file.open(encoding="utf-8", newline="") as handle:
        return [
            kind(**{name: kinds[name](value) for name, value in row.items()})
            for row in csv.DictReader(handle)
        ]


def write(file: Path, rows: list[R]) -> None:
    """All rows as CSV. Atomic."""
    lines = [",".join(field.name for field in fields(rows[0]))]
    lines += [",".join(_cell(value) for value in asdict(r).values()) for r in rows]
    write_text(file, "\n".join(lines) + "\n")


def add(file: Path, row: Row) -> list[Row]:
    """Put `row` into the CSV, in place of an earlier run of the same thing."""
    rows = [known for known in read(file) if known.key != row.key] + [row]
    write(file, rows)
    return rows


def how(rows: list[Any]) -> list[str]:
    """Lines that say on what, with what and by which command rows were made."""
    lines = ["", "## How", ""]
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
    "contender",
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


def table(rows: list[Row]) -> list[str]:
    """Lines of a Markdown table, the lowest held-out FVU first; a contender's best one is bold."""
    rows = sorted(rows, key=lambda row: row.held_out_fvu)
    best: dict[str, float] = {}
    for row in rows:
        best.setdefault(row.contender, row.held_out_fvu)
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|" + "--:|" * (len(HEAD) - 2)]
    for row in rows:
        fvu = f"{row.held_out_fvu:.4f}"
        cells = (
            row.contender,
            row.variant + (f", seed {row.seed}" if row.seed else ""),
            f"{row.lr:.2e}",
            f"**{fvu}**" if row.held_out_fvu == best[row.contender] else fvu,
            f"{row.train_fvu:.4f}",
            f"{row.l0:.2f}",
            f"{row.dead:.1%}",
            f"{row.silent_held_out:.1%}",
            f"{row.ms_p50:.0f} ({row.ms_p20:.0f}-{row.ms_p80:.0f})",
            f"{row.cpu_ms_p50:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(file: Path, rows: list[Row]) -> None:
    """Markdown from all rows of a day: a table per config and length, then how they were made."""
    lines = [
        f"# Quality at equal tokens, CPU, {rows[-1].date}",
        "",
        "Same activations, same order, same number of tokens; lower FVU is better. What each",
        "column is, and how each trainer was driven, stands in `benchmarks/quality.py` and",
        "`benchmarks/peers.py`. A contender's lowest held-out FVU is bold. On tuning: the",
        "default config's learning rate and batch size were chosen on this model and text, so",
        "`tuned` rows give the peers our schedule and several rates, up to as high as ours.",
    ]
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.config, row.tokens, row.batch), []).append(row)
    for (config, tokens, batch), group in groups.items():
        first = group[0]
        lines += ["", f"## {config}, {tokens:,} tokens, {batch} a step", ""]
        lines += [
            f"Width {first.d_in}, {first.d_sae} latents, k {first.k}, dead after "
            f"{first.dead_after:,} tokens.",
            "",
            *table(group),
        ]
        ours = [row.model for row in group if row.contender == "ours"]
        lines += [f"\nOurs as configured: `{model}`" for model in dict.fromkeys(ours)]
    write_text(file, "\n".join([*lines, *how(rows)]) + "\n")
