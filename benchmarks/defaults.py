"""Which settings learn, over sizes and kinds of activations? `python -m benchmarks.defaults`

Each cell is a kind of activations, a size, a number of steps and a batch size; a knob is turned in
it while the others stay as `sae.training.defaults` has them, and AuxK at 1/2, d_in/8.

equal: 64, 256 or 1,024 features in 32, 64 or 128 dimensions, all as frequent as each other, values
    half-normal; 5, 8 or 12 active on average; as many for k, twice as many latents as features.
power-law: the same with frequencies i^-0.5 and values 1 give or take 0.3.
minilm: the activations of configs/default.yaml; 1,024, 4,096 or 8,192 latents, k 16, 32 or 64.

knobs: `lr` and `dead` (tokens until a latent is dead), in multiples of the rule; `auxk`, as
    coefficient and k_aux, the latter as a share of d_in.
FVU: held out. loss: FVU above the lowest of the cell and knob, in percent of that.
dead: share of latents that the run's own counters call dead. silent: on all held-out samples.
MCC: of the true features, where they are known; see `benchmarks.recovery`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import torch

from benchmarks import results_io as record
from benchmarks.activations import CachedSource
from benchmarks.config import DEFAULT, Setting
from benchmarks.quality import CACHE
from sae.activations import Source, Stream
from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.errors import UserError
from sae.files import write_text
from sae.metrics.decoder_directions import dictionary_mcc_signed
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
    """Where a knob is turned."""

    data: str
    size: str
    steps: int
    batch: int = 1024

    @property
    def shape(self) -> tuple[int, int]:
        """d_sae and k."""
        if self.data == "minilm":
            return MINILM[self.size]
        world = WORLDS[self.size]
        return 2 * world["n_features"], int(world["mean_active"])

    def source(self) -> Source:
        if self.data == "minilm":
            setting = Setting.read(DEFAULT, [])
            cached = CachedSource(setting, CACHE)
            cached.prepare(setting, -(-self.steps * self.batch // BLOCK))
            return cached
        more = POWER_LAW if self.data == "power-law" else {}
        return SparseSuperposition(**WORLDS[self.size], **more)


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
    """(cell, knob, value) of every run."""
    runs = [(cell, "lr", (x,)) for cell in MIDDLE for x in (0.25, 0.5, 1.0, 2.0, 4.0)]
    some = [*EDGES, *LENGTHS, *BATCHES]
    runs += [(cell, "lr", (x,)) for cell in some for x in (0.5, 1.0, 2.0)]
    weights = [(c, share) for c in (1 / 32, 1 / 8, 1 / 2, 1) for share in (1 / 8, 1 / 2)]
    runs += [(cell, "auxk", value) for cell in (*MIDDLE, *EDGES) for value in weights]
    runs += [(cell, "dead", (x,)) for cell in MIDDLE for x in (0.25, 4.0)]
    return runs


@dataclass(frozen=True)
class Row:
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
        return (*self.cell, self.knob, self.value)

    @property
    def cell(self) -> tuple:
        return self.data, self.size, self.steps, self.batch


def named(knob: str, value: tuple[float, ...]) -> str:
    if knob == "auxk":
        weight = "1" if value[0] == 1 else f"1/{1 / value[0]:.0f}"
        return f"{weight}, d_in/{1 / value[1]:.0f}"
    return f"x {value[0]:g}"


def run(cell: Cell, knob: str, value: tuple[float, ...], argv: list[str]) -> Row:
    """Train and judge."""
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
    held_out, seen = HeldOutFVU(d_in), Firing(d_sae)
    for part in source.block("held_out", 0, HELD_OUT, 0).acts[hook].split(HELD_OUT_ROWS):
        y, y_hat, codes = learner.predict({"x": part})
        held_out.update(y, y_hat)
        seen.update(codes)
    truth = getattr(source, "truth", None)
    return Row(
        **asdict(cell),
        knob=knob,
        value=named(knob, value),
        fvu=held_out.compute(),
        l0=seen.l0(),
        dead=learner.dead.dead_fraction().item(),
        silent=seen.never_fired_fraction(),
        mcc=float("nan") if truth is None else dictionary_mcc_signed(sae.W_dec.detach(), truth),
        lr=lr,
        dead_after=dead_after,
        coefficient=auxk.coefficient,
        k_aux=auxk.most_firing(d_in),
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        threads=torch.get_num_threads(),
        device=record.cpu(),
        versions=record.versions(["numpy"]),
        commit=record.commit(),
        date=record.today(),
        command=record.command("benchmarks.defaults", argv),
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--knob", choices=["lr", "auxk", "dead"], help="left out: all")
    parser.add_argument("--data", choices=["equal", "power-law", "minilm"], help="left out: all")
    parser.add_argument("--size", choices=SIZES, help="left out: all")
    parser.add_argument("--most-steps", type=int, default=8192, help="leave out longer runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=record.REPO / "benchmarks" / "results")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    chosen = [
        one
        for one in grid()
        if args.knob in (None, one[1])
        and args.data in (None, one[0].data)
        and args.size in (None, one[0].size)
        and one[0].steps <= args.most_steps
    ]
    if not chosen:
        raise UserError(f"--most-steps {args.most_steps} leaves nothing to run; give at least 256")
    for one in chosen:
        row = run(*one, argv)
        write(args.out, row)
        sys.stdout.write(line(row) + "\n")
        sys.stdout.flush()


def write(folder: Path, row: Row) -> None:
    """Add `row` in place of an earlier run of the same; write page and picture anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"defaults_cpu_{row.date}.csv"
    kept = {some.key: some for some in [*record.read(file, Row), row]}
    order = [(*asdict(cell).values(), knob, named(knob, value)) for cell, knob, value in grid()]
    rows = sorted(kept.values(), key=lambda some: order.index(some.key))
    record.write(file, rows)
    write_text(file.with_suffix(".md"), "\n".join(page(rows)) + "\n")
    draw(rows, file.with_suffix(".png"))


def line(row: Row) -> str:
    mcc = "" if row.mcc != row.mcc else f"{row.mcc:.3f}"
    cells = (row.data, row.size, row.steps, row.batch, row.value, f"{row.lr:.2e}")
    return (
        "| " + " | ".join(str(cell) for cell in cells) + f" | {row.fvu:.4f} | {row.dead:.1%} | "
        f"{row.silent:.1%} | {mcc} |"
    )


def page(rows: list[Row]) -> list[str]:
    lines = ["# Settings that learn", "", "What each column is: `benchmarks/defaults.py`.", ""]
    for knob in dict.fromkeys(row.knob for row in rows):
        lines += [f"## {knob}", ""]
        lines += [*summary([row for row in rows if row.knob == knob]), ""]
        lines += ["| data | size | steps | batch | value | lr | FVU | dead | silent | MCC |"]
        lines += ["|---|---|--:|--:|---|--:|--:|--:|--:|--:|"]
        lines += [*[line(row) for row in rows if row.knob == knob], ""]
    return [*lines[:-1], *record.how(rows)]


def losses(rows: list[Row]) -> dict[str, list[float]]:
    """Value of a knob -> in each cell, how far FVU is above that cell's lowest, as a share."""
    lowest: dict[tuple, float] = {}
    for row in rows:
        lowest[row.cell] = min(row.fvu, lowest.get(row.cell, row.fvu))
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.value, []).append(row.fvu / lowest[row.cell] - 1)
    return found


def summary(rows: list[Row]) -> list[str]:
    lines = ["| value | cells | loss: median | most | dead: median | most | least MCC |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for value, lost in losses(rows).items():
        some = [row for row in rows if row.value == value]
        dead = [row.dead for row in some]
        known = [row.mcc for row in some if row.mcc == row.mcc]
        lines.append(
            f"| {value} | {len(some)} | {statistics.median(lost):.1%} | {max(lost):.1%} | "
            f"{statistics.median(dead):.1%} | {max(dead):.1%} | "
            + (f"{min(known):.3f} |" if known else "|")
        )
    return lines


def draw(rows: list[Row], file: Path) -> None:
    """FVU and dead share over the learning rate in multiples of the rule, a curve per cell."""
    rows = [row for row in rows if row.knob == "lr"]
    if not rows:
        return
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    colours = {"equal": "#0b6e99", "power-law": "#b45f06", "minilm": "#38761d"}
    lowest: dict[tuple, float] = {}
    for row in rows:
        lowest[row.cell] = min(row.fvu, lowest.get(row.cell, row.fvu))
    for cell in lowest:
        some = [row for row in rows if row.cell == cell]
        some.sort(key=lambda row: row.lr)
        x = [float(row.value.removeprefix("x ")) for row in some]
        style = {"color": colours[cell[0]], "alpha": 0.6, "marker": "o", "markersize": 3}
        panels[0].plot(x, [row.fvu / lowest[cell] for row in some], **style)
        panels[1].plot(x, [100 * row.dead for row in some], **style)
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.axvline(1, color="#888888", linewidth=0.8, linestyle=":")
        panel.set_xlabel("learning rate, in multiples of the rule")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out FVU, in multiples of the cell's lowest")
    panels[1].set_ylabel("dead latents, %")
    for name, colour in colours.items():
        panels[0].plot([], [], color=colour, marker="o", markersize=3, label=name)
    panels[0].legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
