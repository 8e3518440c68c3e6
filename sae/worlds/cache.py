"""What is trained once and kept on disk, under a hash of the settings that made it."""

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

FORMAT = 1  # raised whenever the same settings would give other tensors


def folder() -> Path:
    """`$XDG_CACHE_HOME/sae-workbench`, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-workbench"


def kept(settings: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors that `make` computes from `settings`, plain data that says all there is to them.

    `make` runs with gradients and on one thread: what is trained here is too small to be split, and
    sums then do not depend on the number of cores. Another version of torch trains anew. Where the
    folder cannot be written, nothing is kept.
    """
    said = json.dumps({**settings, "torch": torch.__version__, "format": FORMAT}, sort_keys=True)
    file = folder() / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors"
    if file.is_file():
        return load_file(file)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Whoever asks may be measuring, without gradients.
        with torch.inference_mode(False), torch.enable_grad():
            made = {name: tensor.detach().contiguous() for name, tensor in make().items()}
    finally:
        torch.set_num_threads(threads)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as staging:
            save_file(made, Path(staging) / "made", metadata={"settings": said})
            os.replace(Path(staging) / "made", file)
    except OSError:
        pass
    return made
