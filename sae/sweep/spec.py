"""The settings of a sweep, as its folder keeps them for a resume."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from sae.errors import UserError
from sae.files import write_text


@dataclass(frozen=True)
class SweepSpec:
    """A sweep's `sweep.json`, which together with its config.yaml is all that a resume needs.

    Attributes:
        keys: The settings that are swept over, such as `model.sae.k`.
        waves: For each wave, its members: name to {setting: value}. The members of a wave train
            together in one run; waves follow one another.
        stop_early: Whether the worse half of the members is stopped during the run.
    """

    keys: list[str]
    waves: list[dict[str, dict[str, Any]]]
    stop_early: bool

    FILE: ClassVar[str] = "sweep.json"

    def write(self, folder: Path) -> None:
        """Write the spec into the folder of its sweep."""
        write_text(folder / self.FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> SweepSpec:
        """Read the spec of the sweep in `folder`.

        Raises:
            UserError: If the folder has no `sweep.json`.
        """
        file = folder / cls.FILE
        if not file.is_file():
            raise UserError(f"--resume {folder}: no {cls.FILE} there; give the folder of a sweep")
        return cls(**json.loads(file.read_text(encoding="utf-8")))
