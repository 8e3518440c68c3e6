"""The folder of a run: its files, and the checks before a run starts or resumes in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from sae.errors import UserError
from sae.runs.metrics_csv import read_rows


class RunDir:
    """The paths inside the folder of a run, `runs/<name>`, and what state the run is in.

    A run leaves `config.yaml`, `metrics.csv`, `summary.json`, `checkpoints/`, `sae/` and
    `report.html` there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """All settings of the run; `fit --config` with this file trains it again."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row per logged step."""
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        """The final metrics; it exists only when the run is finished."""
        return self.path / "summary.json"

    def member(self, name: str) -> RunDir:
        """Return the folder of one member, an SAE of a run that trains several.

        It holds what a run of that SAE alone would leave, except checkpoints.
        """
        return RunDir(self.path / name)

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint that is written after `step` steps."""
        return self.path / "checkpoints" / f"step={step}.ckpt"

    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints that exist, step -> file, oldest first."""
        files = {}
        for file in self.checkpoint(0).parent.glob("step=*.ckpt"):
            number = file.stem.removeprefix("step=")
            if number.isdigit():
                files[int(number)] = file
        return dict(sorted(files.items()))

    def has_steps(self) -> bool:
        """Return whether the run has left anything but its settings: a metrics row or more."""
        if self.summary.exists() or self.checkpoints():
            return True
        return any(read_rows(file) for file in [self.metrics, *self.path.glob("*/metrics.csv")])

    def start(self, *, overwrite: bool) -> None:
        """Make sure that a new run may write into this folder.

        A run that never took a step (it failed while loading its model, say) does not count: the
        new run takes its folder.

        Args:
            overwrite: Remove a run that is there, instead of refusing.

        Raises:
            UserError: The folder holds a run, and `overwrite` is false.
        """
        if not self.config.exists() and not self.checkpoints():
            return
        if overwrite:
            shutil.rmtree(self.path)
        if not self.has_steps():
            return
        steps = list(self.checkpoints())
        if self.summary.exists():
            raise UserError(
                f"{self.path} holds a finished run; choose another --name, or --overwrite it"
            )
        resume = f"continue it with `--resume {self.path}`, " if steps else ""
        raise UserError(
            f"{self.path} holds an unfinished run{f' at step {steps[-1]}' if steps else ''}; "
            f"{resume}choose another --name, or --overwrite it"
        )

    def resume_point(self) -> tuple[int, Path]:
        """Return the step and the file of the newest checkpoint.

        Raises:
            UserError: The folder is not that of a run, or the run has no checkpoint yet.
        """
        if not self.config.is_file():
            raise UserError(
                f"--resume {self.path}: there is no config.yaml; give the folder of a run, such as "
                "runs/default"
            )
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise UserError(
                f"--resume {self.path}: the run ended before its first checkpoint; start it again "
                "with --overwrite"
            )
        return list(checkpoints.items())[-1]
