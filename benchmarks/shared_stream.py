"""Compare training SAEs on one stream with training each alone: `python -m
benchmarks.shared_stream`.

Members of a run, and of a `sweep`, train on one stream. Timed are harvest and steps, without
evaluation and saving. Each round does everything in turn, so that all parts of a ratio meet the
same load on the machine:

harvest: drawing all batches from the stream, once.
standalone steps: the sum over SAEs of the steps of each alone, with all threads, on batches drawn
    beforehand.
together: one harvest with all SAEs training on it, in parallel as in a run.
over parts: together / (harvest + standalone steps). 1 means that nothing is lost.
over steps: (together - harvest) / standalone steps.
over runs: together / time of as many separate runs, each with its own harvest.
one product: time of x @ (all encoders concatenated) / time of as many products x @ W_enc, on all
    threads: what concatenating the matrices of members would gain.

The SAEs trained together must equal those trained alone in every bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import results_io
from benchmarks.command import run_command
from sae.activations import Batch, Source, Stream
from sae.autoencoder.sparsity import TopK
from sae.cli.config import default_config, parse_config
from sae.errors import UserError
from sae.files import write_text
from sae.training import Learner, OptimConfig
from sae.training.parallel_steps import ParallelSteps, faster_in_parallel
from sae.training.train_config import TrainConfig
from sae.worlds import SparseSuperposition
from sae_kernels.matmul import linear


@dataclass(frozen=True)
class Case:
    """SAEs to train on one source."""

    name: str
    source: Callable[[], Source]
    configs: list[TrainConfig]
    batch: int
    steps: int


@dataclass(frozen=True)
class Row:
    """One round of a case; times are in seconds."""

    case: str
    members: int
    steps: int
    batch: int
    harvest: float
    standalone_steps: float
    together: float
    one_product: float
    threads: int
    device: str
    versions: str
    commit: str
    date: str
    command: str

    @property
    def over_parts(self) -> float:
        """Time together over harvest plus standalone steps."""
        return self.together / (self.harvest + self.standalone_steps)

    @property
    def over_steps(self) -> float:
        """Time together without the harvest, over standalone steps."""
        return (self.together - self.harvest) / self.standalone_steps

    @property
    def over_runs(self) -> float:
        """Time together over that of separate runs."""
        return self.together / (self.members * self.harvest + self.standalone_steps)


def minilm() -> Source:
    """Return the source of `configs/default.yaml`."""
    return parse_config(["--config", str(default_config())]).run.data.source


def world(d_in: int, features: int) -> Source:
    """Return a world with a known dictionary."""
    return SparseSuperposition(d_in=d_in, n_features=features, mean_active=8.0)


def cases() -> list[Case]:
    """Return the cases: eight settings on a real model, and eight seeds at three sizes."""
    eight_settings = [
        TrainConfig(TopK(d_sae=4096, k=k), optim=OptimConfig(lr=lr), seed=0)
        for k, rates in zip((8, 16, 32, 64), 2 * [(3e-4, 6e-4), (1.2e-3, 2.4e-3)], strict=True)
        for lr in rates
    ]
    seeds = lambda d_sae, k: [TrainConfig(TopK(d_sae=d_sae, k=k), seed=seed) for seed in range(8)]
    return [
        Case("MiniLM, 384 to 4,096, k 8 to 64", minilm, eight_settings, 1024, 64),
        Case("8 seeds, 64 to 256, k 8", partial(world, 64, 256), seeds(256, 8), 1024, 100),
        Case("8 seeds, 128 to 1,024, k 8", partial(world, 128, 1024), seeds(1024, 8), 1024, 50),
        Case("8 seeds, 384 to 4,096, k 8", partial(world, 384, 4096), seeds(4096, 8), 1024, 48),
    ]


def stream(source: Source, case: Case) -> Stream:
    """Return the training batches of a case."""
    return Stream(source, batch_size=case.batch, block_batches=64, seed=0, batches=case.steps)


def build(config: TrainConfig, source: Source, case: Case, first: Batch) -> Learner:
    """Return an initialized learner."""
    learner = config.build_learner(source.widths, case.batch, case.steps)
    learner.initialise(first.acts)
    return learner


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def train_alone(learner: Learner, batches: Iterable[Batch]) -> None:
    """Take a step on each batch."""
    for batch in batches:
        learner.step(batch.acts)


def train_together(learners: list[Learner], batches: Iterable[Batch]) -> None:
    """Let every learner take a step on each batch, in parallel if that is faster."""
    run_in_parallel, parallel = ParallelSteps(), None
    for batch in batches:
        if parallel is None:
            parallel = faster_in_parallel(
                [len(batch) * learner.sae.W_enc.numel() for learner in learners]
            )
        jobs = [partial(learner.step, batch.acts) for learner in learners]
        run_in_parallel(jobs) if parallel else [job() for job in jobs]
    run_in_parallel.close()


def measure(case: Case, source: Source) -> tuple[float, float, float]:
    """Return the seconds of harvest, of standalone steps, and of training together.

    Raises RuntimeError if the SAEs trained together differ from those trained alone.
    """
    first = stream(source, case).first_block()
    batches: list[Batch] = []
    harvest = seconds(partial(batches.extend, stream(source, case)))
    alone = [build(config, source, case, first) for config in case.configs]
    standalone = sum(seconds(partial(train_alone, learner, batches)) for learner in alone)
    shared = [build(config, source, case, first) for config in case.configs]
    together = seconds(lambda: train_together(shared, stream(source, case)))
    for expected, actual in zip(alone, shared, strict=True):
        state = actual.state_dict()
        for name, value in expected.state_dict().items():
            if isinstance(value, torch.Tensor) and not torch.equal(value, state[name]):
                raise RuntimeError(f"{case.name}: {name} differs when trained together")
    return harvest, standalone, together


def one_product(configs: list[TrainConfig], d_in: int, batch: int) -> float:
    """Return the time of one wide product over that of as many narrow ones, median of 9."""
    x = torch.randn(batch, d_in)
    narrow = [(torch.randn(r.sparsity.d_sae, d_in), torch.zeros(r.sparsity.d_sae)) for r in configs]
    wide = tuple(torch.cat(parts) for parts in zip(*narrow, strict=True))
    ratios = []
    for _ in range(9):
        separate = seconds(lambda: [linear(x, W, b) for W, b in narrow])
        ratios.append(seconds(lambda: linear(x, *wide)) / separate)
    return statistics.median(ratios)


def page(rows: list[Row]) -> list[str]:
    """Return a Markdown page with medians and ranges over rounds."""
    head = (
        "case",
        "harvest, s",
        "standalone steps, s",
        "together, s",
        "over parts",
        "over steps",
        "over runs",
        "one product",
    )
    lines = ["# SAEs on one stream and alone", ""]
    lines += [
        "`benchmarks/shared_stream.py` explains the columns. Medians over rounds. In every round",
        "the SAEs trained together equalled those trained alone in every bit.",
        "",
    ]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for case in dict.fromkeys(row.case for row in rows):
        rounds = [row for row in rows if row.case == case]
        values = lambda name, rounds=rounds: [getattr(row, name) for row in rounds]
        median = lambda name, values=values: statistics.median(values(name))
        cells = [f"{median(name):.1f}" for name in ("harvest", "standalone_steps", "together")]
        for name in ("over_parts", "over_steps", "over_runs", "one_product"):
            low, high = min(values(name)), max(values(name))
            cells.append(f"{median(name):.2f} ({low:.2f} to {high:.2f})")
        count = f"{case}: {rounds[0].steps} steps of {rounds[0].batch:,}"
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return [*lines, *results_io.provenance_lines(rows)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_stream", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cases", nargs="*", help="first letters of names; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=results_io.REPO / "benchmarks" / "results")
    args = parser.parse_args(argv)
    selected = [c for c in cases() if not args.cases or c.name.startswith(tuple(args.cases))]
    if not selected:
        raise UserError(
            f"no case starts with {args.cases}; choose among {[c.name for c in cases()]}"
        )
    torch.set_num_threads(args.threads)
    file = args.out / f"shared_stream_cpu_{results_io.today()}.csv"
    for case in selected:
        source = case.source()
        source.setup("cpu")
        rows = [row for row in results_io.read_rows(file, Row) if row.case != case.name]
        for _ in range(args.rounds):
            harvest, standalone, together = measure(case, source)
            row = Row(
                case=case.name,
                members=len(case.configs),
                steps=case.steps,
                batch=case.batch,
                harvest=harvest,
                standalone_steps=standalone,
                together=together,
                one_product=one_product(case.configs, *source.widths.values(), case.batch),
                threads=args.threads,
                device=results_io.cpu_name(),
                versions=results_io.versions([]),
                commit=results_io.commit(),
                date=results_io.today(),
                command=results_io.command_line("benchmarks.shared_stream", argv),
            )
            rows.append(row)
            sys.stdout.write(
                f"{case.name}: harvest {harvest:.1f} s, standalone steps {standalone:.1f} s, "
                f"together {together:.1f} s: {row.over_parts:.2f} over parts, "
                f"{row.over_runs:.2f} over runs\n"
            )
            sys.stdout.flush()
        args.out.mkdir(parents=True, exist_ok=True)
        results_io.write_rows(file, rows)
        write_text(file.with_suffix(".md"), "\n".join(page(rows)) + "\n")


if __name__ == "__main__":
    run_command(main)
