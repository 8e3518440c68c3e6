"""Keeps tensors that take long to compute on disk, under a hash of their settings."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.progress import progress

FORMAT = 1  # increase when the same settings give other tensors


def folder() -> Path:
    """Return `$XDG_CACHE_HOME/sae-workbench`; XDG_CACHE_HOME is ~/.cache by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-workbench"


def cached(
    settings: dict[str, Any], make: Callable[[], dict[str, Tensor]], description: str
) -> dict[str, Tensor]:
    """Return the tensors that `make` computes, from disk if they were computed before.

    `make` runs with gradients and on one thread: the networks trained here are too small to split,
    and sums then do not depend on the number of cores. Another version of torch computes them
    again. If the folder cannot be written, nothing is stored.

    Args:
        settings: Plain data that determines the tensors completely.
        make: Computes them, which may take long.
        description: What `make` does, for the progress message.
    """
    key = json.dumps({**settings, "torch": torch.__version__, "format": FORMAT}, sort_keys=True)
    file = folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if file.is_file():
        return load_file(file)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The caller may be in no_grad or inference mode.
        with progress(description), torch.inference_mode(False), torch.enable_grad():
            tensors = {name: tensor.detach().contiguous() for name, tensor in make().items()}
    finally:
        torch.set_num_threads(threads)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as staging:
            save_file(tensors, Path(staging) / "tensors", metadata={"settings": key})
            os.replace(Path(staging) / "tensors", file)
    except OSError:
        pass
    return tensors
