"""The folder of a run: what may be written there, and where a resumed run goes on."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sae import legacy
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


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there, and hold nothing but tensors and plain values.

    Lightning's own goes through a temporary file in the system's folder for them; where that is
    another disk, the last move is a copy, and a crash during it leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(".tmp")
        try:
            with staging.open("wb") as handle:
                torch.save(checkpoint, handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(staging, path)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its archive writer.
            staging.unlink(missing_ok=True)
            kept = sorted(path.parent.glob("step=*.ckpt"), key=lambda file: file.stat().st_mtime)
            full = getattr(error, "errno", None) == errno.ENOSPC or not _free(path.parent)
            reason = "the disk is full" if full else " ".join(str(error).split())[:200]
            last = f"the last good one, {kept[-1]}, stays" if kept else "there was none before it"
            raise UserError(f"checkpoint {path} was not written: {reason}; {last}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        try:
            saved = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises a dozen kinds
            raise UserError(
                f"checkpoint {path} cannot be read: it is truncated or not one of ours "
                f"({type(error).__name__}); remove it to go on from the one before"
            ) from error
        return legacy.checkpoint(saved)


def _free(folder: Path) -> bool:
    """Whether the disk under `folder` has a megabyte left."""
    return shutil.disk_usage(folder).free > 2**20
