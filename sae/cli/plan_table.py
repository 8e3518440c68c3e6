"""Show a plan as tables on a terminal."""

from __future__ import annotations

from rich.table import Table

from sae.planner.cost_model import Work
from sae.planner.estimate import MIB, Plan
from sae.planner.memory import GIB


def plan_tables(title: str, plan: Plan) -> list[Table]:
    """Return a table of the members, one of memory and one of time by part."""
    members = Table(title=f"{title}: {plan.tokens:,} tokens", title_justify="left")
    members.add_column("")
    for column in ("parameters", "memory", "GFLOP/step", "GB/step", "ms/step"):
        members.add_column(column, justify="right")
    rows = [
        (name, m.memory.parameter_count, m.memory.persistent, m.step_work, m.step_seconds)
        for name, m in plan.members.items()
    ]
    if len(rows) > 1:
        _, counts, sizes, work, step = zip(*rows, strict=True)
        rows.append(("all", sum(counts), sum(sizes), sum(work, Work(0, 0)), sum(step)))
    for name, count, size, work, step in rows:
        numbers = f"{work.flops / 1e9:.2f}", f"{work.bytes / 1e9:.3f}", f"{1e3 * step:.2f}"
        members.add_row(name, f"{count:,}", show_bytes(size), *numbers)
    memory = Table(title=f"memory: {show_bytes(plan.peak)} at most", title_justify="left")
    memory.add_column("")
    memory.add_column("", justify="right")
    for part, size in plan.memory.items():
        memory.add_row(part, show_bytes(size))
    time = Table(title=f"time: {show_seconds(plan.total)}", title_justify="left")
    time.add_column("")
    time.add_column("", justify="right")
    for part, seconds in plan.seconds.items():
        time.add_row(part, show_seconds(seconds))
    return [members, memory, time]


def show_bytes(size: float) -> str:
    """Return a number of bytes with a unit."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def show_seconds(seconds: float) -> str:
    """Return a duration with a unit."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
