"""Compare our default SAE with other trainers' SAEs: `python -m benchmarks.quality`.

Every trainer (see `benchmarks.peers`) trains on the same activations in the same order for the same
number of tokens, at the same d_sae, k and batch size, all from one config file. The activations are
harvested once, to `--cache`. All are measured in the same way:

held-out FVU: squared error over variance on held-out text, both summed over all tokens.
train FVU: the same over the last `dead_after` training tokens, each batch before the step on it.
L0: mean number of nonzero latents on a held-out token.
dead: share of latents that were zero on all of the last `dead_after` training tokens, with the
    weights before the step on each batch.
silent on held-out: share of latents that were zero on every held-out token.
ms/step: wall time of the step alone, and CPU time of all threads; medians over the run.

A row is added to `<out>/quality_cpu_<date>.csv` as soon as its run is finished, and the Markdown
file next to it is rewritten.
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

from benchmarks import results_io
from benchmarks.activations import CachedSource
from benchmarks.command import run_command
from benchmarks.config import DEFAULT, BenchConfig
from benchmarks.peers import DictionaryLearning, SAELens, Sparsify
from benchmarks.trainers import Ours, Task, Trainer
from sae.activations import Stream
from sae.errors import UserError
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU

TRAINERS: dict[str, type[Trainer]] = {
    "ours": Ours,
    "sparsify": Sparsify,
    "dictionary_learning": DictionaryLearning,
    "saelens": SAELens,
}
CACHE = Path("~/.cache/sae-benchmarks").expanduser()
HELD_OUT_ROWS = 2048


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the config"
    )
    parser.add_argument(
        "--only", default=",".join(TRAINERS), help="trainers to run, separated by commas"
    )
    parser.add_argument(
        "--tuned",
        action="store_true",
        help="train the tuned variants of the other trainers instead",
    )
    parser.add_argument("--variant", help="only variants whose name contains this")
    parser.add_argument("--tokens", type=int, help="default: as many as the config trains on")
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of initial weights, seeds from 0"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="folder for harvested activations"
    )
    parser.add_argument("--out", type=Path, default=results_io.REPO / "benchmarks" / "results")
    parser.add_argument("--list", action="store_true", help="list the installed trainers and exit")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = arguments(argv)
    if args.list:
        for name, trainer in TRAINERS.items():
            variants = [*trainer.variants(False), *trainer.variants(True)]
            names = ", ".join(dict.fromkeys(variants)) if trainer.installed() else "not installed"
            sys.stdout.write(f"{name}: {names}\n")
        return
    torch.set_num_threads(args.threads)
    config = BenchConfig.read(args.config, args.set)
    runs = choose_runs(args)
    steps = (args.tokens or config.tokens) // config.data["batch_size"]
    if steps < 2:
        raise UserError(f"--tokens {args.tokens} is less than two batches")
    source = CachedSource(config, args.cache)
    source.prepare(config, math.ceil(steps / config.data["block_batches"]))
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, (name, variant, options) in itertools.product(range(args.seeds), runs):
        row = run(args, config, source, steps, seed, name, variant, options)
        file = args.out / f"quality_cpu_{row.date}.csv"
        results_io.write_page(file.with_suffix(".md"), results_io.add_row(file, row))
        sys.stdout.write("\n".join(results_io.table_lines([row])[2:]) + "\n")
        sys.stdout.flush()


def choose_runs(args: argparse.Namespace) -> list[tuple[str, str, dict]]:
    """Return (trainer, variant, options) of every requested run, ours first."""
    names = args.only.split(",")
    if unknown := set(names) - set(TRAINERS):
        raise UserError(f"--only {unknown.pop()} is not known; choose among {', '.join(TRAINERS)}")
    chosen = [
        (name, variant, options)
        for name in names
        if TRAINERS[name].installed()
        for variant, options in TRAINERS[name].variants(args.tuned).items()
        if args.variant is None or args.variant in variant
    ]
    if not chosen:
        raise UserError(f"--only {args.only}: none of these is installed; see --list")
    return chosen


def run(
    args: argparse.Namespace,
    config: BenchConfig,
    source: CachedSource,
    steps: int,
    seed: int,
    name: str,
    variant: str,
    options: dict,
) -> results_io.Row:
    """Train with one trainer and measure the result."""
    data = config.data
    stream = Stream(
        source,
        split="train",
        batch_size=data["batch_size"],
        block_batches=data["block_batches"],
        seed=config.seed,
        batches=steps,
    )
    (hook, d_in), *_ = source.widths.items()
    sample = source.block("train", 0, stream.block_size, config.seed).acts[hook]
    scale = math.sqrt(d_in) / sample.double().norm(dim=1).mean().item()
    task = Task(config, d_in, steps, sample, scale, seed)
    trainer = TRAINERS[name](task, **options)

    window = config.dead_after // data["batch_size"]
    train_fvu, train_firing = FVU(d_in), Firing(task.d_sae)
    wall, cpu = [], []
    for index, batch in enumerate(stream):
        acts = batch.acts[hook]
        if index >= steps - window:
            update_metrics(trainer, acts, train_fvu, train_firing)
        start = time.perf_counter(), time.process_time()
        trainer.step(acts)
        wall.append(1e3 * (time.perf_counter() - start[0]))
        cpu.append(1e3 * (time.process_time() - start[1]))
        if (index + 1) % 50 == 0:
            sys.stderr.write(f"{name} {variant}: step {index + 1} of {steps}\n")
    trainer.finish()

    held_out_fvu, held_out_firing = FVU(d_in), Firing(task.d_sae)
    rows = source.block("held_out", 0, data["held_out_tokens"], config.seed).acts[hook]
    for part in rows.split(HELD_OUT_ROWS):
        update_metrics(trainer, part, held_out_fvu, held_out_firing)
    p20, p80 = statistics.quantiles(wall, n=5, method="inclusive")[::3]
    return results_io.Row(
        date=results_io.today(),
        trainer=name,
        variant=variant,
        seed=seed,
        held_out_fvu=held_out_fvu.compute(),
        train_fvu=train_fvu.compute(),
        l0=held_out_firing.l0(),
        dead=train_firing.never_fired_fraction(),
        silent_held_out=held_out_firing.never_fired_fraction(),
        ms_p50=statistics.median(wall),
        ms_p20=p20,
        ms_p80=p80,
        cpu_ms_p50=statistics.median(cpu),
        tokens=steps * data["batch_size"],
        batch=data["batch_size"],
        lr=trainer.lr,
        d_in=d_in,
        d_sae=task.d_sae,
        k=task.k,
        dead_after=config.dead_after,
        config=" ".join([args.config.name, *args.set]),
        model=json.dumps(config.model),
        device=results_io.cpu_name(),
        threads=torch.get_num_threads(),
        versions=results_io.versions(
            ["numpy", "transformers", *filter(None, [TRAINERS[name].distribution])]
        ),
        commit=results_io.commit(),
        command=results_io.command_line("benchmarks.quality", sys.argv[1:]),
    )


@torch.no_grad()
def update_metrics(trainer: Trainer, acts: torch.Tensor, fvu: FVU, firing: Firing) -> None:
    """Add the trainer's predictions on `acts` to the metrics."""
    target, x_hat, codes = trainer.predict(acts)
    fvu.update(target, x_hat)
    firing.update(codes)


if __name__ == "__main__":
    run_command(main)
