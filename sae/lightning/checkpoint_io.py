"""The Lightning plugin that reads and writes checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from sae.runs.checkpoint import load_checkpoint, save_checkpoint


class SafeCheckpointIO(TorchCheckpointIO):
    """A checkpoint plugin that writes each file completely or not at all, and loads no code.

    Lightning's own plugin writes to the system's temporary folder and moves the file. If that
    folder is on another disk, the move is a copy, and a crash in the middle leaves a truncated
    checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_checkpoint(path, map_location or "cpu")
