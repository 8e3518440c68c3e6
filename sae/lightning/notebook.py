"""Training progress in a notebook, and the choice of a progress display."""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

from lightning.pytorch import Callback, Trainer

from sae.lightning.callbacks import (
    MembersTable,
    ProgressBarWithMetrics,
    ProgressLines,
    progress_metrics,
)
from sae.lightning.module import SAEModule


class NotebookProgress(Callback):
    """A progress bar in a notebook cell. It is plain HTML, so it needs no widgets.

    Args:
        every_seconds: Least time between two updates.
    """

    def __init__(self, every_seconds: float = 0.5) -> None:
        self.every_seconds = every_seconds
        self._last_time = -float("inf")
        self._handle: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: SAEModule) -> None:
        from IPython.display import HTML, display

        self._handle = display(HTML(self._html(trainer, pl_module)), display_id=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        from IPython.display import HTML

        now = time.monotonic()
        last = pl_module.steps == trainer.max_steps
        if self._handle is not None and (last or now - self._last_time >= self.every_seconds):
            self._last_time = now
            self._handle.update(HTML(self._html(trainer, pl_module)))

    def _html(self, trainer: Trainer, module: SAEModule) -> str:
        step, steps = module.steps, trainer.max_steps
        metrics = "  ".join(f"{label} {text}" for label, text in progress_metrics(module))
        return (
            f"<progress value='{step}' max='{steps}' style='width:16em'></progress> "
            f"step {step:,} of {steps:,} &ensp; {escape(metrics)}"
        )


def progress_callback(several: bool) -> Callback:
    """Return the progress display for a notebook, a terminal, or a log or pipe.

    Args:
        several: True if the run trains several SAEs; a terminal then shows a row for each.
    """
    if _in_notebook():
        return NotebookProgress()
    if not sys.stdout.isatty():
        return ProgressLines()
    return MembersTable() if several else ProgressBarWithMetrics(refresh_rate=10)


def _in_notebook() -> bool:
    """Return True if the output of this process is shown in a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
