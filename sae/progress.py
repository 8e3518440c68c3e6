"""Progress messages on stderr for everything that takes longer than a moment.

    with progress("loading model gpt2"):
        model = load("gpt2")

    for batch in track(batches, "measuring held-out metrics", total=len(batches)):
        ...

A terminal (or a notebook with ipywidgets) shows a bar, which disappears when the work is done.
Logs and pipes get plain lines instead. Work that ends within `DELAY` seconds shows nothing, so
callers need not guess whether something will be slow. `quiet()` or the environment variable
`SAE_QUIET=1` turns everything off.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

T = TypeVar("T")

DELAY = 1.0
"""Seconds that work must take before anything is shown."""
EVERY = 10.0
"""Seconds between two plain lines about the same work."""


class Task:
    """Work in progress: update it from the thread that does the work."""

    def __init__(self, description: str, total: float | None = None) -> None:
        self.description = description
        self.total = total
        self.completed = 0.0
        self.started = time.monotonic()

    def advance(self, amount: float = 1.0) -> None:
        """Add `amount` to what is completed."""
        self.completed += amount

    def update(
        self,
        description: str | None = None,
        *,
        completed: float | None = None,
        total: float | None = None,
    ) -> None:
        """Set what is given and leave the rest as it is."""
        self.description = self.description if description is None else description
        self.completed = self.completed if completed is None else completed
        self.total = self.total if total is None else total

    @property
    def seconds(self) -> float:
        """Seconds since the work started."""
        return time.monotonic() - self.started

    def __str__(self) -> str:
        share = f" {self.completed / self.total:.0%}" if self.total else ""
        return f"{self.description}:{share} after {self.seconds:.0f} s"


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Task]:
    """Report the work of the `with` block once it has taken `DELAY` seconds.

    Args:
        description: What is being done, such as "loading model gpt2".
        total: Number of units of work, if known; count them with `Task.advance`.
    """
    task = Task(description, total)
    if _silent():
        yield task
        return
    done = threading.Event()
    reporter = _show_bar if _is_interactive() else _print_lines
    thread = threading.Thread(target=reporter, args=(task, done), daemon=True, name="progress")
    thread.start()
    try:
        yield task
    finally:
        done.set()
        thread.join()


def track(iterable: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Yield the items of `iterable`, reporting how many are done.

    Args:
        iterable: Items to work on.
        description: What is being done with them.
        total: Number of items; `len(iterable)` by default, where it has a length.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress(description, total) as task:
        for item in iterable:
            yield item
            task.advance()


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress inside this block, in any thread."""
    global _quiet_blocks
    with _lock:
        _quiet_blocks += 1
    try:
        yield
    finally:
        with _lock:
            _quiet_blocks -= 1


_lock = threading.Lock()
_quiet_blocks = 0
_display: Progress | None = None  # shared, because a terminal can show only one
_shown = 0  # tasks in it


def _silent() -> bool:
    return _quiet_blocks > 0 or os.environ.get("SAE_QUIET", "") not in ("", "0")


def _is_interactive() -> bool:
    console = Console(stderr=True)
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def _print_lines(task: Task, done: threading.Event) -> None:
    if done.wait(DELAY):
        return
    _write(f"{task.description} ...")
    while not done.wait(EVERY):
        _write(str(task))
    _write(f"{task.description}: done in {task.seconds:.1f} s")


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _show_bar(task: Task, done: threading.Event) -> None:
    if done.wait(DELAY):
        return
    bar, row = _add(task)
    while not done.wait(0.1):
        bar.update(row, description=task.description, completed=task.completed, total=task.total)
    _remove(bar, row)


def _add(task: Task) -> tuple[Progress, TaskID]:
    global _display, _shown
    with _lock:
        if _display is None:
            _display = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
                # Text printed meanwhile goes above the bar; a redirected stdout is left alone.
                redirect_stdout=sys.stdout.isatty(),
            )
            _display.start()
        _shown += 1
        return _display, _display.add_task(task.description, total=task.total)


def _remove(bar: Progress, row: TaskID) -> None:
    global _display, _shown
    with _lock:
        bar.remove_task(row)
        _shown -= 1
        if _shown == 0:
            bar.stop()
            _display = None
