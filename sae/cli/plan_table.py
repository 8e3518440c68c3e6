"""A plan as tables for a terminal."""

from __future__ import annotations

from rich.table import Table

from sae.planner.cost_model import Work
from sae.planner.estimate import MIB, Plan
from sae.planner.memory import GIB


def tables(title: str, plan: Plan) -> list[Table]:
    """A row a member, then memory and time by part."""
    each = Table(title=f"{title}: {plan.tokens:,} tokens", title_justify="left")
    each.add_column("")
    for column in ("parameters", "memory", "GFLOP a step", "GB a step", "ms a step"):
        each.add_column(column, justify="right")
    rows = [
        (name, m.needs.count, m.needs.kept, m.step_work, m.timed.step)
        for name, m in plan.members.items()
    ]
    if len(rows) > 1:
        _, counts, kept, work, step = zip(*rows, strict=True)
        rows.append(("all", sum(counts), sum(kept), sum(work, Work(0, 0)), sum(step)))
    for name, count, kept, work, step in rows:
        numbers = f"{work.flops / 1e9:.2f}", f"{work.bytes / 1e9:.3f}", f"{1e3 * step:.2f}"
        each.add_row(name, f"{count:,}", shown_bytes(kept), *numbers)
    memory = Table(title=f"memory: {shown_bytes(plan.peak)} at the most", title_justify="left")
    memory.add_column("")
    memory.add_column("", justify="right")
    for part, size in plan.memory.items():
        memory.add_row(part, shown_bytes(size))
    spent = Table(title=f"time: {duration(plan.total)}", title_justify="left")
    spent.add_column("")
    spent.add_column("", justify="right")
    for part, seconds in plan.seconds.items():
        spent.add_row(part, duration(seconds))
    return [each, memory, spent]


def shown_bytes(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
