"""Checkpoint files that are written atomically and hold only tensors and plain values."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from sae import legacy
from sae.errors import UserError


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write `checkpoint` to `path`, completely or not at all.

    The temporary file is in the same folder, so the final rename is atomic.

    Raises:
        UserError: it cannot be written; the message names the cause, and the newest checkpoint
            that is still good.
    """
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
        earlier = sorted(path.parent.glob("step=*.ckpt"), key=lambda file: file.stat().st_mtime)
        disk_full = getattr(error, "errno", None) == errno.ENOSPC or not _has_space(path.parent)
        reason = "the disk is full" if disk_full else " ".join(str(error).split())[:200]
        last = "there was no earlier checkpoint"
        if earlier:
            last = f"the last good checkpoint, {earlier[-1]}, stays"
        raise UserError(f"checkpoint {path} was not written: {reason}; {last}") from error


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without unpickling code; keys of older versions get their present names.

    Raises:
        UserError: the file is damaged.
    """
    try:
        saved = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged archive raises a dozen kinds
        raise UserError(
            f"checkpoint {path} cannot be read: the file is truncated or was not written by this "
            f"program ({type(error).__name__}); remove it to resume from the one before"
        ) from error
    return legacy.checkpoint(saved)


def _has_space(folder: Path) -> bool:
    """Return whether the disk that holds `folder` has a megabyte left."""
    return shutil.disk_usage(folder).free > 2**20
