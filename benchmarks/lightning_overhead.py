"""Measure the time that Lightning adds to a step: `python -m benchmarks.lightning_overhead`.

The same small steps run in a bare loop over the stream, and in the Trainer as `train.py` sets it up
(its callbacks, `metrics.csv` with a row every 50 steps, no checkpoint) with 1 and with 10 steps per
call (`trainer.steps_per_call`). Activations are made beforehand. The added time is the same at
every size, so it matters only if a step takes about a millisecond.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import torch

from benchmarks import results_io
from sae.activations import ActivationData, Batch, Source, Stream
from sae.autoencoder.sparsity import TopK
from sae.lightning.callbacks import ProgressLines, SaveCheckpoints
from sae.lightning.datamodule import ActivationDataModule
from sae.lightning.module import SAEModule
from sae.runs.run_dir import RunDir
from sae.training.member import Member
from sae.training.train_config import TrainConfig

D_IN, D_SAE, K, BATCH = 64, 512, 8, 256


class RepeatedBlock(Source):
    """A source that returns the same block of normally distributed numbers every time."""

    def setup(self, device: torch.device | str = "cpu") -> None:
        self.widths = {"x": D_IN}
        rows = 32 * BATCH
        self.batch = Batch({"x": torch.randn(rows, D_IN, device=device)})

    def block(self, split: str, index: int, size: int, seed: int) -> Batch:
        return self.batch.rows(slice(0, size))


def milliseconds(steps: int, *, bare: bool, accelerator: str, calls: int = 1) -> float:
    """Return the milliseconds per step in the second half of a run.

    Args:
        steps: Length of the run.
        bare: Whether to use a plain loop instead of Lightning.
        accelerator: cpu or gpu.
        calls: Steps per call of Lightning.
    """
    data = ActivationDataModule(
        ActivationData(RepeatedBlock(), batch_size=BATCH, held_out_tokens=BATCH), calls
    )
    marks: list[float] = []

    class Clock(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            if module.steps in (steps // 2, steps):  # both are multiples of `calls`
                marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = RunDir(Path(folder) / "run")
        run.path.mkdir()
        member = Member("bench", TrainConfig(TopK(d_sae=D_SAE, k=K)), run.path)
        module = SAEModule([member])
        trainer = L.Trainer(
            max_steps=steps,
            accelerator=accelerator,
            devices=1,
            logger=False,
            callbacks=[ProgressLines(), SaveCheckpoints(run, every=steps), Clock()],
            log_every_n_steps=50,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
        )
        trainer.fit(module, datamodule=data)
    if not bare:
        return (marks[1] - marks[0]) / (steps - steps // 2) * 1e3
    learner = member.learner.to("cuda" if accelerator == "gpu" else "cpu")
    stream = Stream(data.source, batch_size=BATCH, block_batches=32, batches=steps)
    for number, batch in enumerate(stream):
        if number == steps // 2:
            start = time.perf_counter()
        learner.step(batch.acts)
        if number % 50 == 0:
            learner.pop_metrics()
    return (time.perf_counter() - start) / (steps - steps // 2) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lightning_overhead", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    loops = {
        "bare": {"bare": True},
        "trainer": {"bare": False},
        "trainer, 10 steps per call": {"bare": False, "calls": 10},
    }
    rounds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(args.rounds):
        for name, options in loops.items():
            rounds[name].append(milliseconds(args.steps, accelerator=args.accelerator, **options))
    device = torch.cuda.get_device_name() if args.accelerator == "gpu" else results_io.cpu_name()
    for name, times in rounds.items():
        median, spread = statistics.median(times), f"{min(times):.3f}-{max(times):.3f}"
        sys.stdout.write(f"{name}: {median:.3f} ms per step ({spread})\n")
    sys.stdout.write(
        f"{D_IN} to {D_SAE}, k {K}, batch {BATCH}, {device}, {args.threads} threads, "
        f"{results_io.versions(['lightning'])}, commit {results_io.commit()}\n"
    )


if __name__ == "__main__":
    main()
