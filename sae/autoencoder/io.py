"""A saved autoencoder: `sae.safetensors` and, with its checksum, `sae.json` in one folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.errors import UserError
from sae.files import atomic_folder

FORMAT = 1
WEIGHTS, CONFIG = "sae.safetensors", "sae.json"


def write(folder: str | Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files to `folder`, all or nothing; UserError when other files lie there."""
    with atomic_folder(folder, {WEIGHTS, CONFIG}) as staging:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, staging / WEIGHTS)
        config = {"format": FORMAT, "sha256": _sha256(staging / WEIGHTS), **config}
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` was given; UserError names the file and what is wrong with it."""
    weights, config_file = Path(folder) / WEIGHTS, Path(folder) / CONFIG
    for file in (config_file, weights):
        if not file.is_file():
            raise UserError(f"{file} does not exist; give the folder that SAE.save wrote")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        version, checksum = config["format"], config["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config_file} is not a description of an SAE: {error!r}") from error
    if version != FORMAT:
        raise UserError(f"{config_file} has format {version}; this version reads {FORMAT}")
    if _sha256(weights) != checksum:
        raise UserError(f"{weights} does not match its checksum: it is truncated or was changed")
    try:
        return config, load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights} cannot be read: {error}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
