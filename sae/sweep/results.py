"""Read the results of a finished sweep from its folder."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from sae.errors import UserError
from sae.runs.run_files import read_json_object
from sae.sweep.grid import SEED
from sae.sweep.l0_groups import group_by_l0
from sae.sweep.spec import SweepSpec


@dataclass(frozen=True)
class MemberResult:
    """The result of one member, that is one SAE, of a sweep.

    Attributes:
        name: Name of the member, such as `k=16,lr=0.001`.
        folder: Its folder, relative to that of the sweep.
        settings: Values of the settings that are swept over.
        stopped: Why it stopped before the end; empty if it did not.
        metrics: Its metrics by name, the finite ones only.
    """

    name: str
    folder: str
    settings: dict[str, Any]
    stopped: str
    metrics: dict[str, float]

    @property
    def l0(self) -> float:
        """Held-out L0."""
        return self.metrics["held_out_l0"]

    @property
    def fvu(self) -> float:
        """Held-out FVU."""
        return self.metrics["held_out_fvu"]


@dataclass(frozen=True)
class SweepResults:
    """The results of a sweep.

    Attributes:
        name: Name of its folder.
        keys: The settings that are swept over.
        members: One result for each SAE, in the order of `sweep.csv`.
        seed_groups: For each group of members that differ only in their seed, the metrics of
            their agreement.
    """

    name: str
    keys: list[str]
    members: list[MemberResult]
    seed_groups: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: str | Path) -> SweepResults:
        """Read `sweep.json`, `sweep.csv` and `seeds.json` of a sweep.

        Raises:
            UserError: If the folder is not the folder of a finished sweep.
        """
        folder = Path(folder)
        table, seeds = folder / "sweep.csv", folder / "seeds.json"
        if not (folder / SweepSpec.FILE).is_file() or not table.is_file():
            raise UserError(f"{folder} is not the folder of a finished sweep")
        spec = SweepSpec.read(folder)
        settings = {name: values for wave in spec.waves for name, values in wave.items()}
        with table.open(newline="", encoding="utf-8") as handle:
            members = [_member_result(row, settings) for row in csv.DictReader(handle)]
        seed_groups = read_json_object(seeds) if seeds.is_file() else {}
        return cls(folder.resolve().name, spec.keys, members, seed_groups)

    @property
    def finished(self) -> list[MemberResult]:
        """The members that reached the end of the run."""
        return [member for member in self.members if not member.stopped]

    @property
    def keys_without_seed(self) -> list[str]:
        """The settings that are swept over, except the seed."""
        return [key for key in self.keys if key != SEED]

    def sets_l0(self, key: str) -> bool:
        """Return whether a setting determines L0."""
        return key.rpartition(".")[2] in ("k", "target_l0", "coefficient")

    def describe(self, member: MemberResult, keys: list[str]) -> str:
        """Return a member's values of some settings as text, such as `k 16, lr 0.001`."""
        show = lambda value: f"{value:g}" if isinstance(value, float) else str(value)
        return ", ".join(f"{key.rpartition('.')[2]} {show(member.settings[key])}" for key in keys)

    def combinations(self) -> list[list[MemberResult]]:
        """Return the finished members in lists that differ only in their seed."""
        combinations: dict[tuple, list[MemberResult]] = {}
        for member in self.finished:
            values = tuple(value for key, value in member.settings.items() if key != SEED)
            combinations.setdefault(values, []).append(member)
        return list(combinations.values())

    def best(self) -> list[list[MemberResult]]:
        """Return the best combination, all its seeds, at each L0 from the lowest on.

        The best of the combinations with about the same mean L0 is the one with the lowest
        held-out FVU, averaged over its seeds.
        """
        groups = group_by_l0(self.combinations(), partial(_seed_mean, "held_out_l0"))
        return [min(group, key=partial(_seed_mean, "held_out_fvu")) for group in groups]


def _member_result(row: dict[str, str], settings: dict[str, dict[str, Any]]) -> MemberResult:
    """Return the member in a row of `sweep.csv`; `settings` are those of all members by name."""
    name, folder, stopped = (row.pop(key) for key in ("member", "folder", "stopped"))
    values = {key: float(cell) for key, cell in row.items() if cell and key not in settings[name]}
    metrics = {key: value for key, value in values.items() if math.isfinite(value)}
    hashable = {key: _hashable(value) for key, value in settings[name].items()}
    return MemberResult(name, folder, hashable, stopped, metrics)


def _seed_mean(metric: str, seeds: list[MemberResult]) -> float:
    return fmean(member.metrics[metric] for member in seeds)


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
