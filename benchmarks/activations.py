"""Activations on disk, so that every contender trains on the same ones and none waits for them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch

from benchmarks.config import Setting
from sae.activations import Batch, Source, Split
from sae.errors import UserError


class CachedSource(Source):
    """The source of a setting, each block of it harvested once and then read from a file.

    A block is one `.npy` of float32 [rows, width], mapped into memory when read, in a folder named
    by a hash of all it depends on. A file appears under its name only when it is whole. `Stream`
    shuffles on top of it, so batches are those of a training run of that setting.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.source = setting.source()
        text = getattr(self.source, "text", None)
        key = {
            "source": setting.data["source"],
            "text": text.fingerprint() if text else platform.python_version(),
        }
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8)
        self.folder = folder / digest.hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(json.dumps(key, indent=2), encoding="utf-8")

    def prepare(self, setting: Setting, blocks: int) -> None:
        """Harvest what is missing of the held-out block and of the first `blocks` of training."""
        size = setting.data["batch_size"] * setting.data["block_batches"]
        held_out = self._file("held_out", 0, setting.data["held_out_tokens"], setting.seed)
        for index in range(blocks):
            self._file("train", index, size, setting.seed)
        self.widths = {self._hook: np.load(held_out, mmap_mode="r").shape[1]}

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        # Copy on write: torch refuses read-only memory with a warning, and nobody writes here.
        acts = np.load(self._file(split, index, size, seed), mmap_mode="c")
        return Batch({self._hook: torch.from_numpy(acts)})

    @property
    def _hook(self) -> str:
        hooks = getattr(self.source, "hooks", None) or list(self.source.widths)
        if len(hooks) != 1:
            raise UserError(f"the benchmark trains on one hook; this config harvests {len(hooks)}")
        return hooks[0]

    def _file(self, split: Split, index: int, size: int, seed: int) -> Path:
        file = self.folder / f"{split}_{size}_{seed}_{index:05d}.npy"
        if not file.is_file():
            self.source.setup("cpu")
            acts = self.source.block(split, index, size, seed).acts[self._hook].float().numpy()
            staging = file.with_name(f"{file.name}.{os.getpid()}.tmp")
            try:
                with staging.open("wb") as handle:
                    np.save(handle, acts, allow_pickle=False)
                os.replace(staging, file)
            finally:
                staging.unlink(missing_ok=True)
        return file
