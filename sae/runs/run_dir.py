"""The folder of a run: what may be written there, and where a resumed run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

from sae.errors import UserError


class RunDir:
    """`runs/<name>`: config.yaml, metrics.csv, summary.json, checkpoints/, sae/, report.html."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def member(self, name: str) -> RunDir:
        """Of one member of several: all that the run of it alone would leave, but checkpoints."""
        return RunDir(self.path / name)

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step={step}.ckpt"

    def checkpoints(self) -> dict[int, Path]:
        """Step to file, oldest first."""
        found = {}
        for file in self.checkpoint(0).parent.glob("step=*.ckpt"):
            number = file.stem.removeprefix("step=")
            if number.isdigit():
                found[int(number)] = file
        return dict(sorted(found.items()))

    def start(self, *, overwrite: bool) -> None:
        """Refuse to write over a run that is there, or with `overwrite` remove it."""
        if not self.config.exists() and not self.checkpoints():
            return
        if overwrite:
            shutil.rmtree(self.path)
            return
        steps = list(self.checkpoints())
        if self.summary.exists():
            raise UserError(
                f"{self.path} holds a finished run; choose another --name, or --overwrite it"
            )
        go_on = f"go on with `--resume {self.path}`, " if steps else ""
        raise UserError(
            f"{self.path} holds an unfinished run{f' at step {steps[-1]}' if steps else ''}; "
            f"{go_on}choose another --name, or --overwrite it"
        )

    def resume_point(self) -> tuple[int, Path]:
        """The newest checkpoint and its step; UserError when there is nothing to go on from."""
        if not self.config.is_file():
            raise UserError(
                f"--resume {self.path}: no config.yaml there; give the folder of a run, "
                f"such as runs/default"
            )
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise UserError(
                f"--resume {self.path}: the run ended before its first checkpoint; "
                f"start it again with --overwrite"
            )
        return list(checkpoints.items())[-1]
