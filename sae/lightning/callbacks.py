"""Callbacks for progress, checkpoints, and a Ctrl-C that loses no step."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.live import Live
from rich.table import Table

from sae.metrics.registry import SAE_COLUMNS, find_metric, find_metrics
from sae.runs.run_dir import RunDir


class ProgressBarWithMetrics(RichProgressBar):
    """A progress bar that shows the last logged metrics.

    Metrics logged with `prog_bar=True` are read off the device at every step, shown or not.
    """

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return dict(progress_metrics(pl_module))

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # a stream has no epochs to count


class ProgressLines(Callback):
    """Progress as plain lines, at most one every few seconds: for logs and pipes."""

    def __init__(self, every_seconds: float = 5.0) -> None:
        self.every_seconds = every_seconds
        self._last = -float("inf")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, total = pl_module.steps, trainer.max_steps
        if done % trainer.log_every_n_steps and done != total:
            return
        now = time.monotonic()
        if now - self._last < self.every_seconds and done != total:
            return
        self._last = now
        left = pl_module.seconds / max(done, 1) * (total - done)
        figures = "  ".join(f"{name} {text}" for name, text in progress_metrics(pl_module))
        sys.stdout.write(f"step {done}/{total}  {figures}  {left:.0f} s left\n")
        sys.stdout.flush()


class Members(Callback):
    """A table with a row for each member, redrawn at log steps: for terminals."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._live = Live(self._table(trainer, pl_module), refresh_per_second=2)
        self._live.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.steps % trainer.log_every_n_steps == 0:
            self._live.update(self._table(trainer, pl_module))

    def _table(self, trainer: Trainer, module: LightningModule) -> Table:
        done, total = module.steps, trainer.max_steps
        left = f", {module.seconds / done * (total - done):.0f} s left" if done else ""
        table = Table(title=f"step {done} of {total}{left}", title_justify="left")
        table.add_column("")
        columns = find_metrics(SAE_COLUMNS)
        for metric in columns:
            table.add_column(metric.short, justify="right")
        for member in module.members:
            values = {**member.last_metrics, **member.held_out}
            cells = [
                metric.text(values[metric.name]) if metric.name in values else ""
                for metric in columns
            ]
            name = member.name if member.live else f"{member.name}: {member.stopped['reason']}"
            table.add_row(name, *cells, style=None if member.live else "dim")
        return table

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(self, "_live"):  # not where training never began
            self._live.stop()


def progress_metrics(module: LightningModule) -> list[tuple[str, str]]:
    """Return what a progress bar shows, as (label, text); of several members the range of FVU."""
    reads = [member.last_metrics for member in module.live]
    if not all(reads):
        return []
    if len(module.members) > 1:
        fvu = find_metric("fvu")
        values = [read[fvu.name] for read in reads]
        return [
            ("learning", f"{len(reads)} of {len(module.members)}"),
            (fvu.short, f"{fvu.text(min(values))} to {fvu.text(max(values))}"),
        ]
    (read,) = reads
    # The throughput of the whole run: an interval in which a block was harvested says little.
    values = {**read, "tokens_per_second": read["tokens"] / read["seconds"]}
    metrics = find_metrics(("fvu", "l0", "dead_fraction", "tokens_per_second"))
    return [(metric.short, metric.text(values[metric.name])) for metric in metrics]


class SaveCheckpoints(Callback):
    """Saves every so many steps, at the end, and when the user stops the run.

    On the first Ctrl-C (or SIGTERM) the step is finished, saved, and the run ends; on the second it
    dies at once. A KeyboardInterrupt in the middle of a step would leave half of the parameters
    updated, and a checkpoint of that cannot be resumed exactly.

    Args:
        run: where they go.
        every: steps between two.
        keep: how many of the newest are kept. The older go only when the newer is on disk.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, run: RunDir, *, every: int, keep: int = 2) -> None:
        self.run, self.every, self.keep = run, every, keep
        self.stopped_by: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # a worker of Ray's, which Ray stops in its own way
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.stopped_by = number
        self._restore()
        sys.stderr.write("\nstopping after this step (again to stop at once)\n")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = pl_module.steps
        last = step == trainer.max_steps
        stop = self.stopped_by is not None and not last
        if step % self.every == 0 or last or stop:
            trainer.save_checkpoint(self.run.checkpoint(step))
            if trainer.is_global_zero:
                for old in list(self.run.checkpoints().values())[: -self.keep]:
                    old.unlink()
        if stop:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()
