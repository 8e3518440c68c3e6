"""Training progress in a notebook, and the choice of a progress display."""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from sae.lightning.callbacks import Members, ProgressBarWithMetrics, ProgressLines, progress_metrics


class NotebookProgress(Callback):
    """A progress bar in a notebook cell. It is plain HTML, so it needs no widgets.

    Args:
        every_seconds: Least time between two updates.
    """

    def __init__(self, every_seconds: float = 0.5) -> None:
        self.every_seconds = every_seconds
        self._last = -float("inf")
        self._handle: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from IPython.display import HTML, display

        self._handle = display(HTML(self._html(trainer, pl_module)), display_id=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        from IPython.display import HTML

        now = time.monotonic()
        last = pl_module.steps == trainer.max_steps
        if self._handle is not None and (last or now - self._last >= self.every_seconds):
            self._last = now
            self._handle.update(HTML(self._html(trainer, pl_module)))

    def _html(self, trainer: Trainer, module: LightningModule) -> str:
        done, total = module.steps, trainer.max_steps
        metrics = "  ".join(f"{name} {text}" for name, text in progress_metrics(module))
        return (
            f"<progress value='{done}' max='{total}' style='width:16em'></progress> "
            f"step {done:,} of {total:,} &ensp; {escape(metrics)}"
        )


def progress_callback(several: bool) -> Callback:
    """Return the progress display that suits where the process runs.

    Args:
        several: Whether the run trains several SAEs.
    """
    if _in_notebook():
        return NotebookProgress()
    if not sys.stdout.isatty():
        return ProgressLines()
    return Members() if several else ProgressBarWithMetrics(refresh_rate=10)


def _in_notebook() -> bool:
    """Return whether the output of this process is shown in a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
