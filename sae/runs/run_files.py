"""Read the files that a run or a sweep leaves in its folder."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae.errors import UserError


@dataclass(frozen=True)
class Curves:
    """The columns of a `metrics.csv`, without its empty and non-finite cells.

    Attributes:
        x_name: Column of the horizontal axis, `tokens` where the file has it, else `step`.
        points: For each other column, its (x, value) pairs in the order of the file.
    """

    x_name: str = "tokens"
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: If the file is not JSON, or holds something other than an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds a {type(value).__name__}; an object is expected")
    return value


def read_curves(file: Path) -> Curves:
    """Read a `metrics.csv`."""
    with file.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    x_name = "tokens" if rows and "tokens" in rows[0] else "step"
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x = _finite_number(row.get(x_name))
        for name, cell in row.items():
            y = _finite_number(cell)
            if x is not None and y is not None and name not in ("step", "tokens"):
                points.setdefault(name, []).append((x, y))
    return Curves(x_name, points)


def _finite_number(cell: str | None) -> float | None:
    try:
        value = float(cell or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
