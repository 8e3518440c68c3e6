"""Our default autoencoder beside other trainers' on the same activations: `python -m
benchmarks.quality`.

Every contender (`benchmarks.peers` says exactly how each is driven) trains on the same
activations in the same order for the same number of tokens, at the same d_sae, k and batch size,
all from one config file. The activations are harvested once, to `--cache`. One ruler for all:

held-out FVU: squared error over variance on held-out text, both summed over the whole set.
train FVU: the same over the last `dead_after` training tokens, each batch before the step on it.
L0: latents that are not zero, a mean over held-out tokens.
dead: share of latents that were zero on each of the last `dead_after` training tokens, with the
    weights that the step on each batch started from.
silent on held-out: share of latents that were zero on every held-out token.
ms/step: wall time of the step alone, and CPU time of all threads; medians over the run.

A row is added to `<out>/quality_cpu_<date>.csv` as soon as its run is over, and the Markdown file
beside it is written again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks import results_io as record
from benchmarks.activations import CachedSource
from benchmarks.config import DEFAULT, Setting
from benchmarks.peers import DictionaryLearning, SAELens, Sparsify
from benchmarks.trainers import Contender, Ours, Task
from sae.activations import Stream
from sae.errors import UserError
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU

CONTENDERS: dict[str, type[Contender]] = {
    "ours": Ours,
    "sparsify": Sparsify,
    "dictionary_learning": DictionaryLearning,
    "saelens": SAELens,
}
CACHE = Path("~/.cache/sae-benchmarks").expanduser()
HELD_OUT_ROWS = 2048


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the config"
    )
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, by comma")
    parser.add_argument("--tuned", action="store_true", help="the peers' tuned variants instead")
    parser.add_argument("--variant", help="only variants whose name contains this")
    parser.add_argument("--tokens", type=int, help="left out: as many as the config trains on")
    parser.add_argument("--seeds", type=int, default=1, help="starting weights to try, from 0")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, default=CACHE, help="where activations are kept")
    parser.add_argument("--out", type=Path, default=record.REPO / "benchmarks" / "results")
    parser.add_argument("--list", action="store_true", help="say who is installed, and end")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.list:
        for name, contender in CONTENDERS.items():
            variants = [*contender.variants(False), *contender.variants(True)]
            what = ", ".join(dict.fromkeys(variants)) if contender.installed() else "not installed"
            sys.stdout.write(f"{name}: {what}\n")
        return
    torch.set_num_threads(args.threads)
    setting = Setting.read(args.config, args.set)
    chosen = choose(args)
    steps = (args.tokens or setting.tokens) // setting.data["batch_size"]
    if steps < 2:
        raise UserError(f"--tokens {args.tokens} is less than two batches")
    source = CachedSource(setting, args.cache)
    source.prepare(setting, math.ceil(steps / setting.data["block_batches"]))
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, (name, variant, options) in itertools.product(range(args.seeds), chosen):
        row = run(args, setting, source, steps, seed, name, variant, options)
        file = args.out / f"quality_cpu_{row.date}.csv"
        record.page(file.with_suffix(".md"), record.add(file, row))
        sys.stdout.write("\n".join(record.table([row])[2:]) + "\n")
        sys.stdout.flush()


def choose(args: argparse.Namespace) -> list[tuple[str, str, dict]]:
    """Contender, variant and options of every run asked for, ours first."""
    names = args.only.split(",")
    if unknown := set(names) - set(CONTENDERS):
        raise UserError(
            f"--only {unknown.pop()} is not known; choose among {', '.join(CONTENDERS)}"
        )
    chosen = [
        (name, variant, options)
        for name in names
        if CONTENDERS[name].installed()
        for variant, options in CONTENDERS[name].variants(args.tuned).items()
        if args.variant is None or args.variant in variant
    ]
    if not chosen:
        raise UserError(f"--only {args.only}: nothing of that is here to run; see --list")
    return chosen


def run(
    args: argparse.Namespace,
    setting: Setting,
    source: CachedSource,
    steps: int,
    seed: int,
    name: str,
    variant: str,
    options: dict,
) -> record.Row:
    """Train one contender and judge it."""
    data = setting.data
    stream = Stream(
        source,
        split="train",
        batch_size=data["batch_size"],
        block_batches=data["block_batches"],
        seed=setting.seed,
        batches=steps,
    )
    (hook, d_in), *_ = source.widths.items()
    sample = source.block("train", 0, stream.block_size, setting.seed).acts[hook]
    scale = math.sqrt(d_in) / sample.double().norm(dim=1).mean().item()
    task = Task(setting, d_in, steps, sample, scale, seed)
    contender = CONTENDERS[name](task, **options)

    window = setting.dead_after // data["batch_size"]
    late, firing = FVU(d_in), Firing(task.d_sae)
    wall, cpu = [], []
    for index, batch in enumerate(stream):
        acts = batch.acts[hook]
        if index >= steps - window:
            judge(contender, acts, late, firing)
        start = time.perf_counter(), time.process_time()
        contender.step(acts)
        wall.append(1e3 * (time.perf_counter() - start[0]))
        cpu.append(1e3 * (time.process_time() - start[1]))
        if (index + 1) % 50 == 0:
            sys.stderr.write(f"{name} {variant}: step {index + 1} of {steps}\n")
    contender.finish()

    held_out, seen = FVU(d_in), Firing(task.d_sae)
    rows = source.block("held_out", 0, data["held_out_tokens"], setting.seed).acts[hook]
    for part in rows.split(HELD_OUT_ROWS):
        judge(contender, part, held_out, seen)
    p20, p80 = statistics.quantiles(wall, n=5, method="inclusive")[::3]
    return record.Row(
        date=record.today(),
        contender=name,
        variant=variant,
        seed=seed,
        held_out_fvu=held_out.compute(),
        train_fvu=late.compute(),
        l0=seen.l0(),
        dead=firing.never_fired_fraction(),
        silent_held_out=seen.never_fired_fraction(),
        ms_p50=statistics.median(wall),
        ms_p20=p20,
        ms_p80=p80,
        cpu_ms_p50=statistics.median(cpu),
        tokens=steps * data["batch_size"],
        batch=data["batch_size"],
        lr=contender.lr,
        d_in=d_in,
        d_sae=task.d_sae,
        k=task.k,
        dead_after=setting.dead_after,
        config=" ".join([args.config.name, *args.set]),
        model=json.dumps(setting.model),
        device=record.cpu(),
        threads=torch.get_num_threads(),
        versions=record.versions(
            ["numpy", "transformers", *filter(None, [CONTENDERS[name].distribution])]
        ),
        commit=record.commit(),
        command=record.command("benchmarks.quality", sys.argv[1:]),
    )


@torch.no_grad()
def judge(contender: Contender, acts: torch.Tensor, fvu: FVU, firing: Firing) -> None:
    target, x_hat, codes = contender.judge(acts)
    fvu.update(target, x_hat)
    firing.update(codes)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
