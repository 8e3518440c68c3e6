"""Keep activations on disk, so that every trainer gets the same ones and none waits for them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch

from benchmarks.config import BenchConfig
from sae.activations import Batch, Source, Split
from sae.errors import UserError


class CachedSource(Source):
    """The source of a config, with blocks that are harvested once and then read from files.

    A block is one `.npy` file of float32 [rows, width], memory-mapped when read, in a folder named
    by a hash of everything that it depends on. Files are written atomically. `Stream` shuffles on
    top of this source, so batches are those of a training run with that config.
    """

    def __init__(self, config: BenchConfig, folder: Path) -> None:
        self.source = config.source()
        text = getattr(self.source, "text", None)
        key = {
            "source": config.data["source"],
            "text": text.fingerprint() if text else platform.python_version(),
        }
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8)
        self.folder = folder / digest.hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(json.dumps(key, indent=2), encoding="utf-8")

    def prepare(self, config: BenchConfig, blocks: int) -> None:
        """Harvest the held-out block and the first `blocks` training blocks, unless on disk."""
        size = config.data["batch_size"] * config.data["block_batches"]
        held_out = self._file("held_out", 0, config.data["held_out_tokens"], config.seed)
        for index in range(blocks):
            self._file("train", index, size, config.seed)
        self.widths = {self._hook: np.load(held_out, mmap_mode="r").shape[1]}

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        # Copy-on-write mode: torch warns about read-only memory, and nothing writes here.
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
