"""Measure how much of a known dictionary each recipe recovers: `python -m benchmarks.recovery`.

A recipe is a sparsity rule with the loss terms that go with it. All recipes train on the same
samples of `configs/worlds/power-law.yaml`, which has 256 true features, with the learning rate,
schedule and AuxK of that file. The target L0, for rules that need one, is the k of the file.

FVU, L0: on held-out samples, with the rule used after training (for BatchTopK its threshold).
MCC: mean signed cosine of true features and the decoder rows matched to them one to one
    (Hungarian); `chance` is the larger of the same for as many random rows and for as many
    training samples, centred.
dead: share of latents that were silent on the last `dead_after` samples of training.
silent: share of latents that are silent on every held-out sample.

Other trainers ("peers"), where installed, run with their own defaults except for the learning rate
(1, 2, 4 and 8 times the default), penalty weights (see `benchmarks.recovery_peers`) and our shares
of warm-up and decay. `best` marks for each peer and recipe the learning rate with the highest MCC
among those with an L0 within a quarter of k, or if there is none, the one with the nearest L0.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks import recovery_peers, results_io
from benchmarks.command import run_command
from benchmarks.config import BenchConfig
from sae.activations import Stream
from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, L0, L1, GateReconstruction, LossTerm, Matryoshka, PreActs
from sae.autoencoder.sparsity import BatchTopK, Gated, JumpReLU, ReLU, Sparsity, TopK
from sae.errors import UserError
from sae.files import write_text
from sae.metrics.decoder_directions import dictionary_mcc_nulls, dictionary_mcc_signed
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU as HeldOutFVU
from sae.training import Learner

CONFIG = results_io.REPO / "configs" / "worlds" / "power-law.yaml"
NULL_ROWS = 4096  # training samples among which those of `chance` are drawn
HELD_OUT_ROWS = 4096


@dataclass(frozen=True)
class Recipe:
    """A sparsity rule with its loss terms, and bounds on its results.

    Attributes:
        rule: The sparsity rule.
        terms: For each loss term, a function of k that returns it.
        mcc: Lower bound on MCC.
        fvu: Upper bound on FVU; None for no bound.
        has_target_l0: Whether L0 must be within 5% of k.
    """

    rule: type[Sparsity]
    terms: tuple[Any, ...]
    mcc: float
    fvu: float | None = None
    has_target_l0: bool = False

    def build(self, d_sae: int, k: int) -> tuple[Sparsity, list[LossTerm]]:
        """Return the rule and the loss terms for these sizes."""
        has_k = any(field.name == "k" for field in fields(self.rule))
        rule = self.rule(d_sae=d_sae, k=k) if has_k else self.rule(d_sae=d_sae)
        return rule, [make(k) for make in self.terms]


fvu, matryoshka = (lambda _: FVU()), (lambda _: Matryoshka())
l1, gates = (lambda k: L1(target_l0=k)), (lambda _: GateReconstruction())
# Needed where AuxK alone leaves over 5% dead: on a transformer, half of the latents of Gated.
pre_acts = lambda _: PreActs(coefficient=1e-2)
RECIPES = {
    "TopK": Recipe(TopK, (fvu,), mcc=0.99, fvu=0.175),
    "BatchTopK": Recipe(BatchTopK, (fvu,), mcc=0.95, fvu=0.20),
    "JumpReLU": Recipe(JumpReLU, (fvu, lambda k: L0(target_l0=k)), mcc=0.90, has_target_l0=True),
    "Gated": Recipe(Gated, (fvu, l1, gates, pre_acts), mcc=0.90, has_target_l0=True),
    "L1": Recipe(ReLU, (fvu, l1, pre_acts), mcc=0.90, has_target_l0=True),
    "Matryoshka": Recipe(TopK, (matryoshka,), mcc=0.85),
    "Matryoshka BatchTopK": Recipe(BatchTopK, (matryoshka,), mcc=0.85),
}
MAX_DEAD = 0.05


@dataclass(frozen=True)
class Row:
    """One run; `verdict` is `yes` or names the bounds that it missed."""

    recipe: str
    trainer: str
    variant: str
    seed: int
    fvu: float
    l0: float
    mcc: float
    chance: float
    dead: float
    silent: float
    cpu_ms: float
    lr: float
    verdict: str
    threads: int
    device: str
    versions: str
    commit: str
    date: str
    command: str

    @property
    def key(self) -> tuple:
        """Identifies a run; a later run with the same key replaces it."""
        return self.recipe, self.trainer, self.variant, self.seed


class Ours:
    """A recipe trained with `sae.training.Learner`."""

    def __init__(
        self, config: BenchConfig, recipe: Recipe, sample: torch.Tensor, seed: int
    ) -> None:
        d_sae, k = config.sparsity.d_sae, config.sparsity.k
        rule, terms = recipe.build(d_sae, k)
        extra = [term for term in config.losses if not isinstance(term, FVU)]
        self.site = config.site.bind({"x": sample.shape[1]})
        self.learner = Learner(
            SAE(sample.shape[1], rule, site=self.site, seed=seed),
            [*terms, *extra],
            config.optim,
            total_steps=config.tokens // config.data["batch_size"],
            dead_after=config.dead_after,
            refresh_steps=config.refresh_steps,
        )
        self.learner.initialise({"x": sample})
        self.lr = self.learner.lr
        self.step = lambda acts: self.learner.step({"x": acts})
        self.predict = lambda acts: self.learner.predict({"x": acts})
        self.dead = lambda: self.learner.dead.dead_fraction().item()
        self.decoder = lambda: self.learner.sae.W_dec


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipe", default=",".join(RECIPES), help="recipes, separated by commas")
    parser.add_argument(
        "--seeds", type=int, default=3, help="number of seeds of weights and samples"
    )
    parser.add_argument(
        "--peers", action="store_true", help="train the other trainers instead, with seed 0"
    )
    parser.add_argument("--steps", type=int, help="default: as many as the config has")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results_io.REPO / "benchmarks" / "results")
    args = parser.parse_args(argv)
    if unknown := set(args.recipe.split(",")) - set(RECIPES):
        raise UserError(f"--recipe {unknown.pop()} is not known; choose among {', '.join(RECIPES)}")
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    config = BenchConfig.read(CONFIG, [f"trainer.max_steps={args.steps}"] if args.steps else [])
    for name in args.recipe.split(","):
        if args.peers:
            for trainer, variant, make in recovery_peers.runs(name, config):
                run(args, argv, config, name, trainer, variant, 0, make)
        else:
            for seed in range(args.seeds):
                make = lambda *args, recipe=RECIPES[name]: Ours(config, recipe, *args)
                run(args, argv, config, name, "ours", "", seed, make)


def run(
    args: argparse.Namespace,
    argv: list[str],
    config: BenchConfig,
    name: str,
    trainer: str,
    variant: str,
    seed: int,
    make: Any,
) -> None:
    """Train, measure, and add a row to the files."""
    source = config.source()
    result = train_and_measure(config, source, make, seed, ours=trainer == "ours")
    (samples,) = source.block("train", 0, NULL_ROWS, seed).acts.values()
    nulls = dictionary_mcc_nulls(source.truth, config.sparsity.d_sae, samples)
    bounds = {name: getattr(result, name) for name in ("fvu", "l0", "mcc", "dead")}
    row = Row(
        recipe=name,
        trainer=trainer,
        variant=variant,
        seed=seed,
        **asdict(result),
        chance=nulls["dictionary_mcc_signed_chance"],
        verdict=verdict(RECIPES[name], config.sparsity.k, **bounds) if trainer == "ours" else "",
        threads=args.threads,
        device=results_io.cpu_name(),
        versions=results_io.versions(["numpy", *recovery_peers.distributions(trainer)]),
        commit=results_io.commit(),
        date=results_io.today(),
        command=results_io.command_line("benchmarks.recovery", argv),
    )
    write(args.out, row)
    sys.stdout.write(line(row) + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Result:
    """The metrics of a trained SAE, as the module's docstring defines them."""

    fvu: float
    l0: float
    mcc: float
    dead: float
    silent: float
    cpu_ms: float
    lr: float


def train_and_measure(
    config: BenchConfig, source: Any, make: Any, seed: int, *, ours: bool = True
) -> Result:
    """Train on the samples of a world, and measure on held-out ones.

    Args:
        config: Sizes and length of the run.
        source: The world.
        make: Function of (samples, seed) that returns what is trained, such as `Ours`.
        seed: Seed of weights and samples.
        ours: Whether what is trained counts dead latents itself.
    """
    data = config.data
    (hook,) = source.widths
    steps = config.tokens // data["batch_size"]
    stream = Stream(
        source,
        split="train",
        batch_size=data["batch_size"],
        block_batches=min(data["block_batches"], steps),
        seed=seed,
        batches=steps,
    )
    trainee = make(stream.first_block().acts[hook], seed)
    train_firing = Firing(config.sparsity.d_sae)
    window = config.dead_after // data["batch_size"]
    cpu_seconds = 0.0
    for number, batch in enumerate(stream):
        acts = batch.acts[hook]
        start = time.process_time()
        trainee.step(acts)
        cpu_seconds += time.process_time() - start
        if not ours and number >= steps - window:
            train_firing.update(trainee.predict(acts)[2])
    held_out_fvu = HeldOutFVU(source.d_in)
    held_out_firing = Firing(config.sparsity.d_sae)
    rows = source.block("held_out", 0, data["held_out_tokens"], seed).acts[hook]
    with torch.no_grad():
        for part in rows.split(HELD_OUT_ROWS):
            y, y_hat, codes = trainee.predict(part)
            held_out_fvu.update(y, y_hat)
            held_out_firing.update(codes)
        mcc = dictionary_mcc_signed(trainee.decoder().detach(), source.truth)
    return Result(
        fvu=held_out_fvu.compute(),
        l0=held_out_firing.l0(),
        mcc=mcc,
        dead=trainee.dead() if ours else train_firing.never_fired_fraction(),
        silent=held_out_firing.never_fired_fraction(),
        cpu_ms=1e3 * cpu_seconds / steps,
        lr=trainee.lr,
    )


def verdict(recipe: Recipe, k: int, *, fvu: float, l0: float, mcc: float, dead: float) -> str:
    """Return `yes`, or the bounds that are missed."""
    missed = []
    if recipe.fvu is not None and not fvu <= recipe.fvu:
        missed.append(f"FVU > {recipe.fvu}")
    if recipe.has_target_l0 and not abs(l0 / k - 1) <= 0.05:
        missed.append("L0 off by more than 5%")
    if not mcc >= recipe.mcc:
        missed.append(f"MCC < {recipe.mcc}")
    if not dead < MAX_DEAD:
        missed.append(f"dead >= {MAX_DEAD:.0%}")
    return ", ".join(missed) or "yes"


def write(folder: Path, row: Row) -> None:
    """Add a row to the CSV, replacing an earlier run with its key, and rewrite the page."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"recovery_cpu_{row.date}.csv"
    latest = {r.key: r for r in [*results_io.read_rows(file, Row), row]}
    order = list(RECIPES)
    rows = sorted(latest.values(), key=lambda r: (order.index(r.recipe), r.trainer != "ours"))
    results_io.write_rows(file, rows)
    write_text(file.with_suffix(".md"), "\n".join(page(rows)) + "\n")


def best(rows: list[Row], k: int) -> set[tuple]:
    """Return the keys of the rows that the page marks as `best`."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.trainer != "ours":
            groups.setdefault((row.recipe, row.trainer), []).append(row)
    keys = set()
    for group in groups.values():
        near = [row for row in group if abs(row.l0 / k - 1) <= 0.25]
        nearness = lambda row: -abs(math.log(max(row.l0, 1e-9) / k))
        best_row = max(near, key=lambda r: r.mcc) if near else max(group, key=nearness)
        keys.add(best_row.key)
    return keys


HEAD = (
    *("recipe", "trainer", "variant", "seed", "FVU", "L0", "MCC", "chance", "dead", "silent"),
    *("CPU ms", "within bounds"),
)


def line(row: Row, mark: str = "") -> str:
    """Return the line of a row in a Markdown table."""
    return (
        f"| {row.recipe} | {row.trainer} | {row.variant}{mark} | {row.seed} | {row.fvu:.4f} | "
        f"{row.l0:.2f} | {row.mcc:.3f} | {row.chance:.3f} | {row.dead:.1%} | {row.silent:.1%} | "
        f"{row.cpu_ms:.1f} | {row.verdict} |"
    )


def page(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown page."""
    k = BenchConfig.read(CONFIG, []).sparsity.k
    marked = best(rows, k)
    lines = [
        "# Recovery of known features",
        "",
        "`benchmarks/recovery.py` explains the columns.",
        "",
    ]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * 3 + "--:|" * 8 + "---|"]
    lines += [line(row, " **best**" if row.key in marked else "") for row in rows]
    return [*lines, *results_io.provenance_lines(rows)]


if __name__ == "__main__":
    run_command(main)
