"""How much of a known dictionary does each recipe find? `python -m benchmarks.recovery`

Every recipe trains on the same samples of `configs/worlds/power-law.yaml`, which has 256 true
features, with the same learning rate, schedule and AuxK: those of that file. What differs is the
sparsity rule and the term that goes with it. Where an L0 is wanted it is the file's k.

FVU, L0: on held-out samples, by the rule that holds after training (BatchTopK: its threshold).
MCC: mean cosine of true features and the decoder rows matched to them one to one (Hungarian),
    signed; `chance` is that of as many random rows.
dead: share of latents that were silent for the last `dead_after` samples of training.
silent: share that is silent on every held-out sample.

Peers, where installed, each with its own defaults except for the learning rate (1, 2, 4 and 8
times its default), penalty weights (`benchmarks.recovery_peers`), and schedule: warm-up and decay
are ours.
`best` marks the learning rate of each peer and recipe with the highest MCC among those whose L0 is
within a quarter of k, or if there is none, the one whose L0 is nearest.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks import recovery_peers
from benchmarks import results_io as record
from benchmarks.config import Setting
from sae.activations import Stream
from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, L0, L1, GateReconstruction, LossTerm, Matryoshka, PreActs
from sae.autoencoder.sparsity import BatchTopK, Gated, JumpReLU, ReLU, Sparsity, TopK
from sae.errors import UserError
from sae.files import write_text
from sae.metrics.decoder_directions import dictionary_mcc_chance, dictionary_mcc_signed
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU as HeldOutFVU
from sae.training import Learner

CONFIG = record.REPO / "configs" / "worlds" / "power-law.yaml"
HELD_OUT_ROWS = 4096


@dataclass(frozen=True)
class Recipe:
    """One of ours, with what is expected of it.

    Args:
        rule, terms: given d_sae and k.
        fvu, mcc: the most and the least that it should reach; None where nothing is promised.
        steered: whether L0 must come within 5% of k.
    """

    rule: type[Sparsity]
    terms: tuple[Any, ...]
    mcc: float
    fvu: float | None = None
    steered: bool = False

    def build(self, d_sae: int, k: int) -> tuple[Sparsity, list[LossTerm]]:
        has_k = any(field.name == "k" for field in fields(self.rule))
        rule = self.rule(d_sae=d_sae, k=k) if has_k else self.rule(d_sae=d_sae)
        return rule, [make(k) for make in self.terms]


fvu, matryoshka = (lambda _: FVU()), (lambda _: Matryoshka())
l1, gates = (lambda k: L1(target_l0=k)), (lambda _: GateReconstruction())
# Where AuxK alone leaves more than 5% dead: half of the latents of Gated, on a transformer.
alive = lambda _: PreActs(coefficient=1e-2)
RECIPES = {
    "TopK": Recipe(TopK, (fvu,), mcc=0.99, fvu=0.175),
    "BatchTopK": Recipe(BatchTopK, (fvu,), mcc=0.95, fvu=0.20),
    "JumpReLU": Recipe(JumpReLU, (fvu, lambda k: L0(target_l0=k)), mcc=0.90, steered=True),
    "Gated": Recipe(Gated, (fvu, l1, gates, alive), mcc=0.90, steered=True),
    "L1": Recipe(ReLU, (fvu, l1, alive), mcc=0.90, steered=True),
    "Matryoshka": Recipe(TopK, (matryoshka,), mcc=0.85),
    "Matryoshka BatchTopK": Recipe(BatchTopK, (matryoshka,), mcc=0.85),
}
MOST_DEAD = 0.05


@dataclass(frozen=True)
class Row:
    """One run; `kept` says why it fell short, or `yes`."""

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
    kept: str
    threads: int
    device: str
    versions: str
    commit: str
    date: str
    command: str

    @property
    def key(self) -> tuple:
        return self.recipe, self.trainer, self.variant, self.seed


class Ours:
    """A recipe through `sae.training.Learner`."""

    def __init__(self, setting: Setting, recipe: Recipe, sample: torch.Tensor, seed: int) -> None:
        d_sae, k = setting.sparsity.d_sae, setting.sparsity.k
        rule, terms = recipe.build(d_sae, k)
        extra = [term for term in setting.losses if not isinstance(term, FVU)]
        self.site = setting.site.bind({"x": sample.shape[1]})
        self.learner = Learner(
            SAE(sample.shape[1], rule, site=self.site, seed=seed),
            [*terms, *extra],
            setting.optim,
            total_steps=setting.tokens // setting.data["batch_size"],
            dead_after=setting.dead_after,
            refresh_steps=setting.refresh_steps,
        )
        self.learner.initialise({"x": sample})
        self.lr = self.learner.lr
        self.step = lambda acts: self.learner.step({"x": acts})
        self.judge = lambda acts: self.learner.predict({"x": acts})
        self.dead = lambda: self.learner.dead.dead_fraction().item()
        self.decoder = lambda: self.learner.sae.W_dec


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipe", default=",".join(RECIPES), help="by comma")
    parser.add_argument("--seeds", type=int, default=3, help="starting weights and samples, from 0")
    parser.add_argument("--peers", action="store_true", help="the peers instead, seed 0")
    parser.add_argument("--steps", type=int, help="left out: as many as the config has")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=record.REPO / "benchmarks" / "results")
    args = parser.parse_args(argv)
    if unknown := set(args.recipe.split(",")) - set(RECIPES):
        raise UserError(f"--recipe {unknown.pop()} is not known; choose among {', '.join(RECIPES)}")
    return args


def main(argv: list[str]) -> None:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    setting = Setting.read(CONFIG, [f"trainer.max_steps={args.steps}"] if args.steps else [])
    for name in args.recipe.split(","):
        if args.peers:
            for trainer, variant, make in recovery_peers.runs(name, setting):
                run(args, argv, setting, name, trainer, variant, 0, make)
        else:
            for seed in range(args.seeds):
                make = lambda *some, recipe=RECIPES[name]: Ours(setting, recipe, *some)
                run(args, argv, setting, name, "ours", "", seed, make)


def run(
    args: argparse.Namespace,
    argv: list[str],
    setting: Setting,
    name: str,
    trainer: str,
    variant: str,
    seed: int,
    make: Any,
) -> None:
    """Train, judge, and add a row to the files."""
    source, data = setting.source(), setting.data
    (hook,) = source.widths
    steps = setting.tokens // data["batch_size"]
    stream = Stream(
        source,
        split="train",
        batch_size=data["batch_size"],
        block_batches=min(data["block_batches"], steps),
        seed=seed,
        batches=steps,
    )
    contender = make(stream.first_block().acts[hook], seed)
    late, before = Firing(setting.sparsity.d_sae), setting.dead_after // data["batch_size"]
    spent = 0.0
    for number, batch in enumerate(stream):
        acts = batch.acts[hook]
        start = time.process_time()
        contender.step(acts)
        spent += time.process_time() - start
        if trainer != "ours" and number >= steps - before:
            late.update(contender.judge(acts)[2])
    held_out, seen = HeldOutFVU(source.d_in), Firing(setting.sparsity.d_sae)
    rows = source.block("held_out", 0, data["held_out_tokens"], seed).acts[hook]
    with torch.no_grad():
        for part in rows.split(HELD_OUT_ROWS):
            y, y_hat, codes = contender.judge(part)
            held_out.update(y, y_hat)
            seen.update(codes)
        mcc = dictionary_mcc_signed(contender.decoder().detach(), source.truth)
    dead = contender.dead() if trainer == "ours" else late.never_fired_fraction()
    figures = {"fvu": held_out.compute(), "l0": seen.l0(), "mcc": mcc, "dead": dead}
    row = Row(
        recipe=name,
        trainer=trainer,
        variant=variant,
        seed=seed,
        **figures,
        chance=dictionary_mcc_chance(source.truth, setting.sparsity.d_sae),
        silent=seen.never_fired_fraction(),
        cpu_ms=1e3 * spent / steps,
        lr=contender.lr,
        kept=verdict(RECIPES[name], setting.sparsity.k, **figures) if trainer == "ours" else "",
        threads=args.threads,
        device=record.cpu(),
        versions=record.versions(["numpy", *recovery_peers.distributions(trainer)]),
        commit=record.commit(),
        date=record.today(),
        command=record.command("benchmarks.recovery", argv),
    )
    write(args.out, row)
    sys.stdout.write(line(row) + "\n")
    sys.stdout.flush()


def verdict(recipe: Recipe, k: int, *, fvu: float, l0: float, mcc: float, dead: float) -> str:
    """`yes`, or the figures that are not what is expected."""
    short = []
    if recipe.fvu is not None and not fvu <= recipe.fvu:
        short.append(f"FVU > {recipe.fvu}")
    if recipe.steered and not abs(l0 / k - 1) <= 0.05:
        short.append("L0 off by more than 5%")
    if not mcc >= recipe.mcc:
        short.append(f"MCC < {recipe.mcc}")
    if not dead < MOST_DEAD:
        short.append(f"dead >= {MOST_DEAD:.0%}")
    return ", ".join(short) or "yes"


def write(folder: Path, row: Row) -> None:
    """Add `row` to the CSV in place of an earlier run of the same, and write the page anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"recovery_cpu_{row.date}.csv"
    kept = {some.key: some for some in [*record.read(file, Row), row]}
    order = list(RECIPES)
    rows = sorted(kept.values(), key=lambda r: (order.index(r.recipe), r.trainer != "ours"))
    record.write(file, rows)
    write_text(file.with_suffix(".md"), "\n".join(page(rows)) + "\n")


def best(rows: list[Row], k: int) -> set[tuple]:
    """Keys of the best learning rate of each peer and recipe; the module says by what."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.trainer != "ours":
            groups.setdefault((row.recipe, row.trainer), []).append(row)
    found = set()
    for some in groups.values():
        near = [row for row in some if abs(row.l0 / k - 1) <= 0.25]
        far = lambda row: -abs(math.log(max(row.l0, 1e-9) / k))
        found.add(max(near, key=lambda r: r.mcc).key if near else max(some, key=far).key)
    return found


HEAD = (
    *("recipe", "trainer", "variant", "seed", "FVU", "L0", "MCC", "chance", "dead", "silent"),
    *("CPU ms", "kept"),
)


def line(row: Row, mark: str = "") -> str:
    return (
        f"| {row.recipe} | {row.trainer} | {row.variant}{mark} | {row.seed} | {row.fvu:.4f} | "
        f"{row.l0:.2f} | {row.mcc:.3f} | {row.chance:.3f} | {row.dead:.1%} | {row.silent:.1%} | "
        f"{row.cpu_ms:.1f} | {row.kept} |"
    )


def page(rows: list[Row]) -> list[str]:
    k = Setting.read(CONFIG, []).sparsity.k
    marked = best(rows, k)
    lines = [
        "# Recovery of known features",
        "",
        "What each column is: `benchmarks/recovery.py`.",
        "",
    ]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * 3 + "--:|" * 8 + "---|"]
    lines += [line(row, " **best**" if row.key in marked else "") for row in rows]
    return [*lines, *record.how(rows)]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
