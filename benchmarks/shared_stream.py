"""What company saves: `python -m benchmarks.shared_stream`.

Autoencoders on one stream (`members`, and `sweep`), beside the same ones alone. Time is of harvest
and steps; nothing is judged or saved. Each round does everything in turn, so that the ratios of a
round share whatever else the machine does:

harvest: drawing all batches from the stream, once.
lone steps: of each autoencoder by itself, with all threads, on batches drawn before; their sum.
together: one harvest with all of them learning from it, side by side as a run has them.
of the parts: together over harvest + lone steps. 1 is no loss.
of lone steps: together less one harvest, over the lone steps.
of lone runs: together over the time of so many runs, each with a harvest of its own.
one product: x @ all encoders side by side, over as many products x @ W_enc, on all threads: what is
    to be gained where members of one shape are put into one matrix.

What is learnt together is compared with what is learnt alone: it must be the same to the last bit.
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

from benchmarks import results_io as record
from sae.activations import Batch, Source, Stream
from sae.autoencoder.sparsity import TopK
from sae.cli.config import Settings, default_config
from sae.errors import UserError
from sae.files import write_text
from sae.training import Learner, OptimConfig
from sae.training.parallel_steps import ParallelSteps, worth
from sae.training.train_config import TrainConfig
from sae.worlds import SparseSuperposition
from sae_kernels.matmul import linear


@dataclass(frozen=True)
class Case:
    """Autoencoders to train on one source."""

    name: str
    source: Callable[[], Source]
    recipes: list[TrainConfig]
    batch: int
    steps: int


@dataclass(frozen=True)
class Row:
    """One round of a case."""

    case: str
    members: int
    steps: int
    batch: int
    harvest: float
    lone_steps: float
    together: float
    one_product: float
    threads: int
    device: str
    versions: str
    commit: str
    date: str
    command: str

    @property
    def of_parts(self) -> float:
        return self.together / (self.harvest + self.lone_steps)

    @property
    def of_steps(self) -> float:
        return (self.together - self.harvest) / self.lone_steps

    @property
    def of_runs(self) -> float:
        return self.together / (self.members * self.harvest + self.lone_steps)


def minilm() -> Source:
    """The source of `configs/default.yaml`."""
    settings = Settings(["--config", str(default_config())], lambda config: {})
    return settings.datamodule.source


def world(d_in: int, features: int) -> Source:
    return SparseSuperposition(d_in=d_in, n_features=features, mean_active=8.0)


def cases() -> list[Case]:
    """Eight settings on a real model, and eight seeds of one shape at three sizes."""
    mixed = [
        TrainConfig(TopK(d_sae=4096, k=k), optim=OptimConfig(lr=lr), seed=0)
        for k, rates in zip((8, 16, 32, 64), 2 * [(3e-4, 6e-4), (1.2e-3, 2.4e-3)], strict=True)
        for lr in rates
    ]
    seeds = lambda d_sae, k: [TrainConfig(TopK(d_sae=d_sae, k=k), seed=seed) for seed in range(8)]
    return [
        Case("MiniLM, 384 to 4,096, k 8 to 64", minilm, mixed, 1024, 64),
        Case("8 seeds, 64 to 256, k 8", partial(world, 64, 256), seeds(256, 8), 1024, 100),
        Case("8 seeds, 128 to 1,024, k 8", partial(world, 128, 1024), seeds(1024, 8), 1024, 50),
        Case("8 seeds, 384 to 4,096, k 8", partial(world, 384, 4096), seeds(4096, 8), 1024, 48),
    ]


def stream(source: Source, case: Case) -> Stream:
    return Stream(source, batch_size=case.batch, block_batches=64, seed=0, batches=case.steps)


def learner(recipe: TrainConfig, source: Source, case: Case, first: Batch) -> Learner:
    made = recipe.build_learner(source.widths, case.batch, case.steps)
    made.initialise(first.acts)
    return made


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def steps(one: Learner, batches: Iterable[Batch]) -> None:
    for batch in batches:
        one.step(batch.acts)


def together(learners: list[Learner], batches: Iterable[Batch]) -> None:
    crew, in_crew = ParallelSteps(), None
    for batch in batches:
        if in_crew is None:
            in_crew = worth([len(batch) * one.sae.W_enc.numel() for one in learners])
        jobs = [partial(one.step, batch.acts) for one in learners]
        crew(jobs) if in_crew else [job() for job in jobs]
    crew.close()


def measured(case: Case, source: Source) -> tuple[float, float, float]:
    """Seconds of harvest, of all lone steps, and of all together. Raises RuntimeError where what
    was learnt differs."""
    first = stream(source, case).first_block()
    batches: list[Batch] = []
    harvest = seconds(partial(batches.extend, stream(source, case)))
    alone = [learner(recipe, source, case, first) for recipe in case.recipes]
    lone = sum(seconds(partial(steps, one, batches)) for one in alone)
    company = [learner(recipe, source, case, first) for recipe in case.recipes]
    whole = seconds(lambda: together(company, stream(source, case)))
    for one, other in zip(alone, company, strict=True):
        for name, value in one.state_dict().items():
            if isinstance(value, torch.Tensor) and not torch.equal(value, other.state_dict()[name]):
                raise RuntimeError(f"{case.name}: {name} differs in company")
    return harvest, lone, whole


def one_product(recipes: list[TrainConfig], d_in: int, batch: int) -> float:
    """One wide product over as many narrow ones, the median of several pairs."""
    x = torch.randn(batch, d_in)
    narrow = [(torch.randn(r.sparsity.d_sae, d_in), torch.zeros(r.sparsity.d_sae)) for r in recipes]
    wide = tuple(torch.cat(parts) for parts in zip(*narrow, strict=True))
    ratios = []
    for _ in range(9):
        apart = seconds(lambda: [linear(x, W, b) for W, b in narrow])
        ratios.append(seconds(lambda: linear(x, *wide)) / apart)
    return statistics.median(ratios)


def page(rows: list[Row]) -> list[str]:
    """Markdown: medians over rounds, and from where to where."""
    head = (
        "case",
        "harvest, s",
        "lone steps, s",
        "together, s",
        "of the parts",
        "of lone steps",
        "of lone runs",
        "one product",
    )
    lines = ["# Autoencoders on one stream, and alone", ""]
    lines += [
        "What each column is stands in `benchmarks/shared_stream.py`. Medians over rounds; what"
    ]
    lines += ["was learnt together is the same as alone, to the last bit, in every round.", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for case in dict.fromkeys(row.case for row in rows):
        some = [row for row in rows if row.case == case]
        median = lambda name, some=some: statistics.median(getattr(row, name) for row in some)
        spread = lambda name, some=some: [getattr(row, name) for row in some]
        cells = [f"{median(name):.1f}" for name in ("harvest", "lone_steps", "together")]
        for name in ("of_parts", "of_steps", "of_runs", "one_product"):
            found = spread(name)
            cells.append(f"{median(name):.2f} ({min(found):.2f} to {max(found):.2f})")
        count = f"{case}: {some[0].steps} steps of {some[0].batch:,}"
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return [*lines, *record.how(rows)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_stream", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cases", nargs="*", help="beginnings of names; left out: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=record.REPO / "benchmarks" / "results")
    args = parser.parse_args(argv)
    wanted = [c for c in cases() if not args.cases or c.name.startswith(tuple(args.cases))]
    if not wanted:
        raise UserError(f"no case begins with {args.cases}; there are {[c.name for c in cases()]}")
    torch.set_num_threads(args.threads)
    file = args.out / f"company_cpu_{record.today()}.csv"
    for case in wanted:
        source = case.source()
        source.setup("cpu")
        kept = [row for row in record.read(file, Row) if row.case != case.name]
        for _ in range(args.rounds):
            harvest, lone, whole = measured(case, source)
            row = Row(
                case=case.name,
                members=len(case.recipes),
                steps=case.steps,
                batch=case.batch,
                harvest=harvest,
                lone_steps=lone,
                together=whole,
                one_product=one_product(case.recipes, *source.widths.values(), case.batch),
                threads=args.threads,
                device=record.cpu(),
                versions=record.versions([]),
                commit=record.commit(),
                date=record.today(),
                command=record.command("benchmarks.shared_stream", argv),
            )
            kept.append(row)
            sys.stdout.write(
                f"{case.name}: harvest {harvest:.1f} s, lone steps {lone:.1f}, together "
                f"{whole:.1f}: {row.of_parts:.2f} of the parts, {row.of_runs:.2f} of lone runs\n"
            )
            sys.stdout.flush()
        args.out.mkdir(parents=True, exist_ok=True)
        record.write(file, kept)
        write_text(file.with_suffix(".md"), "\n".join(page(kept)) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
