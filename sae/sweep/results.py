"""What a sweep found, read back from `sweep.csv`."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from sae.errors import UserError
from sae.sweep.l0_groups import of_like_l0


@dataclass(frozen=True)
class Trained:
    """One member: its name, what was set, why it stopped early if it did, and its figures."""

    name: str
    folder: str
    settings: dict[str, Any]
    stopped: str
    figures: dict[str, float]

    @property
    def l0(self) -> float:
        return self.figures["held_out_l0"]

    @property
    def fvu(self) -> float:
        return self.figures["held_out_fvu"]


@dataclass(frozen=True)
class SweepResults:
    """A sweep: the settings that were swept over, its members in order, and by the name of a group
    of seeds what they agree on, where there are such."""

    SEED: ClassVar[str] = "model.seed"
    name: str
    keys: list[str]
    members: list[Trained]
    seeds: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: str | Path) -> SweepResults:
        """Raises UserError when the folder is not one of a finished sweep."""
        folder = Path(folder)
        asked, table = folder / "sweep.json", folder / "sweep.csv"
        if not asked.is_file() or not table.is_file():
            raise UserError(f"{folder} is not the folder of a finished sweep")
        asked = json.loads(asked.read_text(encoding="utf-8"))
        keys = asked["keys"]
        changes = {name: some for wave in asked["waves"] for name, some in wave.items()}
        found = []
        with table.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                name, place, stopped = (row.pop(key) for key in ("member", "folder", "stopped"))
                for key in keys:
                    row.pop(key)
                figures = {key: float(value) for key, value in row.items() if value != ""}
                finite = {key: value for key, value in figures.items() if math.isfinite(value)}
                settings = {key: _hashable(value) for key, value in changes[name].items()}
                found.append(Trained(name, place, settings, stopped, finite))
        agreed = folder / "seeds.json"
        seeds = json.loads(agreed.read_text(encoding="utf-8")) if agreed.is_file() else {}
        return cls(folder.resolve().name, keys, found, seeds)

    @property
    def trained(self) -> list[Trained]:
        """Those that reached the end."""
        return [member for member in self.members if not member.stopped]

    def sets_l0(self, key: str) -> bool:
        """Whether a setting is what decides L0."""
        return key.rpartition(".")[2] in ("k", "target_l0", "coefficient")

    def named(self, member: Trained, keys: list[str]) -> str:
        """Its values of some settings, for a legend."""
        value = lambda v: f"{v:g}" if isinstance(v, float) else str(v)
        return ", ".join(f"{key.rpartition('.')[2]} {value(member.settings[key])}" for key in keys)

    def candidates(self) -> list[list[Trained]]:
        """Those that reached the end, seeds of one combination together."""
        found: dict[tuple, list[Trained]] = {}
        for member in self.trained:
            key = tuple(value for key, value in member.settings.items() if key != self.SEED)
            found.setdefault(key, []).append(member)
        return list(found.values())

    def best(self) -> list[list[Trained]]:
        """Of each L0, from the lowest on, the seeds of the combination with the lowest mean
        held-out FVU."""
        groups = of_like_l0(self.candidates(), partial(_mean, "held_out_l0"))
        return [min(group, key=partial(_mean, "held_out_fvu")) for group in groups]


def _mean(figure: str, seeds: list[Trained]) -> float:
    return fmean(member.figures[figure] for member in seeds)


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
