"""What lies in a run's folder, read for showing it. A piece that is not there is left empty."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import UserError
from sae.metrics.examples import LatentExamples, read_examples
from sae.metrics.firing import Firing


@dataclass(frozen=True)
class Run:
    """A run's folder: `curves` maps each column of metrics.csv to its [(x, value)].

    x is `x_label`: tokens where the file has them, else steps. Cells that are empty or not finite
    are left out. `metadata` is that of the saved SAE.
    """

    name: str
    config: str
    metadata: dict[str, Any]
    summary: dict[str, Any]
    curves: dict[str, list[tuple[float, float]]]
    x_label: str
    firing: Firing | None
    latents: list[LatentExamples]

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Raises UserError when the folder is not there or holds nothing of a run."""
        folder = Path(folder).resolve()
        names = ("config.yaml", "metrics.csv", "summary.json", "examples.jsonl", "density.json")
        config, metrics, summary, examples, density = (folder / name for name in names)
        if not any(file.is_file() for file in (config, metrics, summary)):
            raise UserError(
                f"{folder} is not the folder of a run: it has none of {', '.join(names[:3])}"
            )
        sae = folder / "sae" / "sae.json"
        curves, x_label = _curves(metrics) if metrics.is_file() else ({}, "tokens")
        return cls(
            name=folder.name,
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            metadata=_json_object(sae).get("metadata", {}) if sae.is_file() else {},
            summary=_json_object(summary) if summary.is_file() else {},
            curves=curves,
            x_label=x_label,
            firing=Firing.load(density) if density.is_file() else None,
            latents=read_examples(examples) if examples.is_file() else [],
        )

    @property
    def held_out(self) -> dict[str, Any]:
        """The figures that `evaluate` gave."""
        return self.summary.get("held_out") or {}


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds a {type(value).__name__}; an object is expected")
    return value


def _curves(file: Path) -> tuple[dict[str, list[tuple[float, float]]], str]:
    with file.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    x_label = "tokens" if rows and "tokens" in rows[0] else "step"
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x = _number(row.get(x_label))
        for name, cell in row.items():
            y = _number(cell)
            if x is not None and y is not None and name not in ("step", "tokens"):
                curves.setdefault(name, []).append((x, y))
    return curves, x_label


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
