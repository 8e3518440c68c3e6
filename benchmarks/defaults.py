"""Vary the default settings over sizes and kinds of activations: `python -m benchmarks.defaults`.

A cell is a kind of activations, a size, a number of steps and a batch size. In each cell one
setting ("knob") varies while the others have their defaults from `sae.training.defaults`, and AuxK
has coefficient 1/2 and k_aux d_in/8.

equal: 64, 256 or 1,024 equally frequent features in 32, 64 or 128 dimensions with half-normal
    values; 5, 8 or 12 are active on average, k is the same number, and there are twice as many
    latents as features.
power-law: the same with frequencies i^-0.5 and values 1 +- 0.3.
minilm: the activations of configs/default.yaml; 1,024, 4,096 or 8,192 latents, k 16, 32 or 64.

knobs: `lr` and `dead` (tokens until a latent counts as dead), in multiples of the default; `auxk`,
    as coefficient and k_aux, the latter as a share of d_in.
FVU: on held-out activations. loss: FVU above the lowest of its cell and knob, relative to it.
dead: share of latents that are dead by the counters of the run.
silent: share of latents that do not fire on any held-out activation.
MCC, chance: with the true features, where they are known; see `benchmarks.recovery`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import torch

from benchmarks import results_io
from benchmarks.activations import CachedSource
from benchmarks.command import run_command
from benchmarks.config import DEFAULT, BenchConfig
from benchmarks.quality import CACHE
from sae.activations import Source, Stream
from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.errors import UserError
from sae.files import write_text
from sae.metrics.decoder_directions import dictionary_mcc_nulls, dictionary_mcc_signed
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU as HeldOutFVU
from sae.training import Learner, OptimConfig, defaults
from sae.worlds import SparseSuperposition

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

BLOCK, HELD_OUT, HELD_OUT_ROWS = 65_536, 16_384, 2_048
WORLDS = {
    "small": {"d_in": 32, "n_features": 64, "mean_active": 5.0},
    "middle": {"d_in": 64, "n_features": 256, "mean_active": 8.0},
    "large": {"d_in": 128, "n_features": 1024, "mean_active": 12.0},
}
POWER_LAW = {"frequency_exponent": 0.5, "magnitudes": "constant", "spread": 0.3}
MINILM = {"small": (1024, 16), "middle": (4096, 32), "large": (8192, 64)}


@dataclass(frozen=True)
class Cell:
    """Activations, a size, a number of steps and a batch size."""

    data: str
    size: str
    steps: int
    batch: int = 1024

    @property
    def shape(self) -> tuple[int, int]:
        """(d_sae, k)."""
        if self.data == "minilm":
            return MINILM[self.size]
        world = WORLDS[self.size]
        return 2 * world["n_features"], int(world["mean_active"])

    def source(self) -> Source:
        """Return the source of the activations."""
        if self.data == "minilm":
            config = BenchConfig.read(DEFAULT, [])
            cached = CachedSource(config, CACHE)
            cached.prepare(config, -(-self.steps * self.batch // BLOCK))
            return cached
        changes = POWER_LAW if self.data == "power-law" else {}
        return SparseSuperposition(**WORLDS[self.size], **changes)


SIZES = ("small", "middle", "large")
MIDDLE = [Cell("equal", "middle", 2048), Cell("power-law", "middle", 2048)]
MIDDLE += [Cell("minilm", "middle", 1024)]
EDGES = [Cell(data, size, 2048) for data in ("equal", "power-law") for size in ("small", "large")]
EDGES += [Cell("minilm", "small", 1024), Cell("minilm", "large", 256)]
LENGTHS = [Cell(data, size, 512) for data in ("equal", "power-law") for size in SIZES]
LENGTHS += [Cell("power-law", "middle", 8192), Cell("minilm", "middle", 256)]
BATCHES = [Cell("power-law", "middle", 2048, batch) for batch in (256, 4096)]
BATCHES += [Cell("minilm", "small", 1024, 256), Cell("minilm", "small", 256, 4096)]


def grid() -> list[tuple[Cell, str, tuple[float, ...]]]:
    """Return (cell, knob, value) of every run."""
    runs = [(cell, "lr", (x,)) for cell in MIDDLE for x in (0.25, 0.5, 1.0, 2.0, 4.0)]
    others = [*EDGES, *LENGTHS, *BATCHES]
    runs += [(cell, "lr", (x,)) for cell in others for x in (0.5, 1.0, 2.0)]
    weights = [(c, share) for c in (1 / 32, 1 / 8, 1 / 2, 1) for share in (1 / 8, 1 / 2)]
    runs += [(cell, "auxk", value) for cell in (*MIDDLE, *EDGES) for value in weights]
    runs += [(cell, "dead", (x,)) for cell in MIDDLE for x in (0.25, 4.0)]
    return runs


@dataclass(frozen=True)
class Row:
    """One run."""

    data: str
    size: str
    steps: int
    batch: int
    knob: str
    value: str
    fvu: float
    l0: float
    dead: float
    silent: float
    mcc: float
    chance: float
    lr: float
    dead_after: int
    coefficient: float
    k_aux: int
    d_in: int
    d_sae: int
    k: int
    threads: int
    device: str
    versions: str
    commit: str
    date: str
    command: str

    @property
    def key(self) -> tuple:
        """Identifies a run; a later run with the same key replaces it."""
        return (*self.cell, self.knob, self.value)

    @property
    def cell(self) -> tuple:
        """The cell as a tuple."""
        return self.data, self.size, self.steps, self.batch


def value_label(knob: str, value: tuple[float, ...]) -> str:
    """Return the value of a knob as text, such as `x 2` or `1/8, d_in/2`."""
    if knob == "auxk":
        weight = "1" if value[0] == 1 else f"1/{1 / value[0]:.0f}"
        return f"{weight}, d_in/{1 / value[1]:.0f}"
    return f"x {value[0]:g}"


def run(cell: Cell, knob: str, value: tuple[float, ...], argv: list[str]) -> Row:
    """Train and measure."""
    source, (d_sae, k) = cell.source(), cell.shape
    ((hook, d_in),) = source.widths.items()
    lr = defaults.learning_rate("adam", d_in, d_sae, cell.steps)
    dead_after = defaults.dead_after(d_sae, k, tokens=cell.steps * cell.batch)
    auxk = AuxK(coefficient=1 / 2)
    if knob == "lr":
        lr *= value[0]
    elif knob == "dead":
        dead_after = int(dead_after * value[0])
    else:
        auxk = AuxK(coefficient=value[0], k_aux=max(1, int(d_in * value[1])))
    stream = Stream(
        source,
        split="train",
        batch_size=cell.batch,
        block_batches=BLOCK // cell.batch,
        batches=cell.steps,
    )
    sae = SAE(d_in, TopK(d_sae=d_sae, k=k), site=Autoencoder().bind({"x": d_in}))
    learner = Learner(
        sae,
        [FVU(), auxk],
        OptimConfig(lr=lr),
        total_steps=cell.steps,
        dead_after=dead_after,
        refresh_steps=defaults.refresh_steps(dead_after, cell.batch),
    )
    learner.initialise({"x": stream.first_block().acts[hook]})
    for batch in stream:
        learner.step({"x": batch.acts[hook]})
    held_out_fvu, firing = HeldOutFVU(d_in), Firing(d_sae)
    for part in source.block("held_out", 0, HELD_OUT, 0).acts[hook].split(HELD_OUT_ROWS):
        y, y_hat, codes = learner.predict({"x": part})
        held_out_fvu.update(y, y_hat)
        firing.update(codes)
    mcc = chance = float("nan")
    features = source.known_features()
    if features is not None:
        mcc = dictionary_mcc_signed(sae.W_dec.detach(), features.truth)
        samples = source.block("train", 0, max(4096, d_sae), 0).acts[hook]
        nulls = dictionary_mcc_nulls(features.truth, d_sae, samples)
        chance = nulls["dictionary_mcc_signed_chance"]
    return Row(
        **asdict(cell),
        knob=knob,
        value=value_label(knob, value),
        fvu=held_out_fvu.compute(),
        l0=firing.l0(),
        dead=learner.dead.dead_fraction().item(),
        silent=firing.never_fired_fraction(),
        mcc=mcc,
        chance=chance,
        lr=lr,
        dead_after=dead_after,
        coefficient=auxk.coefficient,
        k_aux=auxk.effective_k_aux(d_in),
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        threads=torch.get_num_threads(),
        device=results_io.cpu_name(),
        versions=results_io.versions(["numpy"]),
        commit=results_io.commit(),
        date=results_io.today(),
        command=results_io.command_line("benchmarks.defaults", argv),
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--knob", choices=["lr", "auxk", "dead"], help="default: all")
    parser.add_argument("--data", choices=["equal", "power-law", "minilm"], help="default: all")
    parser.add_argument("--size", choices=SIZES, help="default: all")
    parser.add_argument("--max-steps", type=int, default=8192, help="skip longer runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results_io.REPO / "benchmarks" / "results")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    chosen = [
        (cell, knob, value)
        for cell, knob, value in grid()
        if args.knob in (None, knob)
        and args.data in (None, cell.data)
        and args.size in (None, cell.size)
        and cell.steps <= args.max_steps
    ]
    if not chosen:
        raise UserError(f"--max-steps {args.max_steps} leaves nothing to run; give at least 256")
    for cell, knob, value in chosen:
        row = run(cell, knob, value, argv)
        write(args.out, row)
        sys.stdout.write(line(row) + "\n")
        sys.stdout.flush()


def write(folder: Path, row: Row) -> None:
    """Add a row, replacing an earlier run with its key; rewrite the page and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"defaults_cpu_{row.date}.csv"
    latest = {r.key: r for r in [*results_io.read_rows(file, Row), row]}
    order = [
        (*asdict(cell).values(), knob, value_label(knob, value)) for cell, knob, value in grid()
    ]
    rows = sorted(latest.values(), key=lambda r: order.index(r.key))
    results_io.write_rows(file, rows)
    write_text(file.with_suffix(".md"), "\n".join(page(rows)) + "\n")
    draw(rows, file.with_suffix(".png"))


def line(row: Row) -> str:
    """Return the line of a row in a Markdown table."""
    mcc, chance = ("" if x != x else f"{x:.3f}" for x in (row.mcc, row.chance))
    cells = (row.data, row.size, row.steps, row.batch, row.value, f"{row.lr:.2e}")
    return (
        "| " + " | ".join(str(cell) for cell in cells) + f" | {row.fvu:.4f} | {row.dead:.1%} | "
        f"{row.silent:.1%} | {mcc} | {chance} |"
    )


def page(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown page."""
    lines = ["# Default settings", "", "`benchmarks/defaults.py` explains the columns.", ""]
    for knob in dict.fromkeys(row.knob for row in rows):
        lines += [f"## {knob}", ""]
        lines += [*summary([row for row in rows if row.knob == knob]), ""]
        lines += [
            "| data | size | steps | batch | value | lr | FVU | dead | silent | MCC | chance |"
        ]
        lines += ["|---|---|--:|--:|---|--:|--:|--:|--:|--:|--:|"]
        lines += [*[line(row) for row in rows if row.knob == knob], ""]
    return [*lines[:-1], *results_io.provenance_lines(rows)]


def losses(rows: list[Row]) -> dict[str, list[float]]:
    """Return for each value of a knob, over cells, FVU relative to the cell's lowest, minus 1."""
    lowest: dict[tuple, float] = {}
    for row in rows:
        lowest[row.cell] = min(row.fvu, lowest.get(row.cell, row.fvu))
    losses: dict[str, list[float]] = {}
    for row in rows:
        losses.setdefault(row.value, []).append(row.fvu / lowest[row.cell] - 1)
    return losses


def summary(rows: list[Row]) -> list[str]:
    """Return a Markdown table with a line for each value of a knob."""
    lines = ["| value | cells | median loss | max loss | median dead | max dead | min MCC |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for value, loss in losses(rows).items():
        with_value = [row for row in rows if row.value == value]
        dead = [row.dead for row in with_value]
        mccs = [row.mcc for row in with_value if row.mcc == row.mcc]
        lines.append(
            f"| {value} | {len(with_value)} | {statistics.median(loss):.1%} | {max(loss):.1%} | "
            f"{statistics.median(dead):.1%} | {max(dead):.1%} | "
            + (f"{min(mccs):.3f} |" if mccs else "|")
        )
    return lines


def draw(rows: list[Row], file: Path) -> None:
    """Plot FVU and dead latents over the learning rate, one curve for each cell."""
    rows = [row for row in rows if row.knob == "lr"]
    if not rows:
        return
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    colors = {"equal": "#0b6e99", "power-law": "#b45f06", "minilm": "#38761d"}
    lowest: dict[tuple, float] = {}
    for row in rows:
        lowest[row.cell] = min(row.fvu, lowest.get(row.cell, row.fvu))
    for cell in lowest:
        of_cell = sorted((row for row in rows if row.cell == cell), key=lambda row: row.lr)
        x = [float(row.value.removeprefix("x ")) for row in of_cell]
        style = {"color": colors[cell[0]], "alpha": 0.6, "marker": "o", "markersize": 3}
        panels[0].plot(x, [row.fvu / lowest[cell] for row in of_cell], **style)
        panels[1].plot(x, [100 * row.dead for row in of_cell], **style)
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.axvline(1, color="#888888", linewidth=0.8, linestyle=":")
        panel.set_xlabel("learning rate, in multiples of the default")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out FVU, relative to the lowest of the cell")
    panels[1].set_ylabel("dead latents, %")
    for name, color in colors.items():
        panels[0].plot([], [], color=color, marker="o", markersize=3, label=name)
    panels[0].legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
