"""Callbacks that show progress, write checkpoints, and finish the step after a Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.live import Live
from rich.table import Table

from sae.lightning.module import SAEModule
from sae.metrics.registry import SAE_COLUMNS, find_metric, find_metrics
from sae.runs.run_dir import RunDir


class ProgressBarWithMetrics(RichProgressBar):
    """A progress bar with the last row of training metrics.

    Metrics logged with `self.log(prog_bar=True)` would be read off the device at every step.
    """

    def get_metrics(self, trainer: Trainer, pl_module: SAEModule) -> dict[str, Any]:
        return dict(progress_metrics(pl_module))

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # a stream has no epochs to count


class ProgressLines(Callback):
    """A callback that prints progress as plain lines, for logs and pipes.

    Args:
        every_seconds: Least time between two lines.
    """

    def __init__(self, every_seconds: float = 5.0) -> None:
        self.every_seconds = every_seconds
        self._last_time = -float("inf")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, steps = pl_module.steps, trainer.max_steps
        if step % pl_module.log_every and step != steps:
            return
        now = time.monotonic()
        if now - self._last_time < self.every_seconds and step != steps:
            return
        self._last_time = now
        seconds_left = pl_module.seconds / max(step, 1) * (steps - step)
        metrics = "  ".join(f"{label} {text}" for label, text in progress_metrics(pl_module))
        sys.stdout.write(f"step {step}/{steps}  {metrics}  {seconds_left:.0f} s left\n")
        sys.stdout.flush()


class MembersTable(Callback):
    """A callback that shows a table with a row for each member, redrawn at log steps.

    It is for terminals.
    """

    def __init__(self) -> None:
        self._live: Live | None = None

    def on_train_start(self, trainer: Trainer, pl_module: SAEModule) -> None:
        self._live = Live(self.table(trainer.max_steps, pl_module), refresh_per_second=2)
        self._live.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._live is not None and pl_module.steps % pl_module.log_every == 0:
            self._live.update(self.table(trainer.max_steps, pl_module))

    def table(self, steps: int, module: SAEModule) -> Table:
        """Return the table for a run of `steps` steps."""
        title = f"step {module.steps} of {steps}"
        if module.steps:
            seconds_left = module.seconds / module.steps * (steps - module.steps)
            title += f", {seconds_left:.0f} s left"
        table = Table(title=title, title_justify="left")
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
            if member.stopped is None:
                table.add_row(member.name, *cells)
            else:
                table.add_row(f"{member.name}: {member.stopped['reason']}", *cells, style="dim")
        return table

    def teardown(self, trainer: Trainer, pl_module: SAEModule, stage: str) -> None:
        if self._live is not None:  # None if the run failed before its first step
            self._live.stop()


def progress_metrics(module: SAEModule) -> list[tuple[str, str]]:
    """Return the (label, text) pairs that a progress display shows.

    For a single member these are its main metrics, for several the number of live members and the
    range of their FVU. The list is empty before the first row of metrics.
    """
    rows = [member.last_metrics for member in module.live]
    if not all(rows):
        return []
    if len(module.members) > 1:
        fvu = find_metric("fvu")
        fvus = [row[fvu.name] for row in rows]
        return [
            ("learning", f"{len(rows)} of {len(module.members)}"),
            (fvu.short, f"{fvu.text(min(fvus))} to {fvu.text(max(fvus))}"),
        ]
    (row,) = rows
    # Throughput of the run so far: that of the last interval depends on whether a block of
    # activations was harvested in it.
    values = {**row, "tokens_per_second": row["tokens"] / row["seconds"]}
    metrics = find_metrics(("fvu", "l0", "dead_fraction", "tokens_per_second"))
    return [(metric.short, metric.text(values[metric.name])) for metric in metrics]


class SaveCheckpoints(Callback):
    """A callback that saves checkpoints at intervals, at the end, and when the user stops the run.

    After the first Ctrl-C (or SIGTERM) the run finishes its step, saves a checkpoint and ends. A
    second one ends the process at once. Without this, a KeyboardInterrupt in the middle of a step
    would leave half of the parameters updated, and a run cannot be resumed exactly from that.

    Args:
        run: Folder of the run.
        every: Steps between two checkpoints.
        keep: Number of checkpoints to keep. Old ones are deleted after a new one is on disk.

    Attributes:
        stopped_by: Number of the signal that stopped the run, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, run: RunDir, *, every: int, keep: int = 2) -> None:
        self.run, self.every, self.keep = run, every, keep
        self.stopped_by: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: SAEModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers; Ray Tune, for one, trains in a thread
        for number in self.SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, frame: Any) -> None:
        self.stopped_by = number
        self._restore_handlers()
        sys.stderr.write("\nstopping after this step (again to stop at once)\n")

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int
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

    def teardown(self, trainer: Trainer, pl_module: SAEModule, stage: str) -> None:
        self._restore_handlers()
