"""A saved autoencoder: `sae.safetensors` and `sae.json` in one folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae.autoencoder.sae import SAE
from sae.autoencoder.sites import Site
from sae.autoencoder.sparsity import Sparsity
from sae.errors import UserError
from sae.files import whole_folder

FORMAT = 1
WEIGHTS, CONFIG = "sae.safetensors", "sae.json"


def save(sae: SAE, folder: str | Path) -> None:
    """Write `sae` to `folder`, all or nothing; UserError when other files lie there."""
    with whole_folder(folder, {WEIGHTS, CONFIG}) as staging:
        tensors = {name: t.detach().cpu().contiguous() for name, t in sae.state_dict().items()}
        save_file(tensors, staging / WEIGHTS)
        config = {
            "format": FORMAT,
            "d_in": sae.d_in,
            "sparsity": sae.sparsity.to_dict(),
            "site": sae.site.to_dict(),
            "dtype": str(sae.b_dec.dtype).removeprefix("torch."),
            "sha256": _sha256(staging / WEIGHTS),
            "metadata": sae.metadata,
        }
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> SAE:
    """Read an SAE; UserError names the file and what is wrong with it."""
    folder = Path(folder)
    weights, config_file = folder / WEIGHTS, folder / CONFIG
    for file in (config_file, weights):
        if not file.is_file():
            raise UserError(f"{file} does not exist; give the folder that SAE.save wrote")
    try:
        config: dict[str, Any] = json.loads(config_file.read_text())
        d_in, dtype = config["d_in"], getattr(torch, config["dtype"])
        sparsity = Sparsity.from_dict(config["sparsity"])
        site = Site.from_dict(config["site"])
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{config_file} is not a description of an SAE: {error!r}") from error
    if config["format"] != FORMAT:
        raise UserError(f"{config_file} has format {config['format']}; this version reads {FORMAT}")
    if _sha256(weights) != config["sha256"]:
        raise UserError(f"{weights} does not match its checksum: it is truncated or was changed")
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights} cannot be read: {error}") from error
    sae = SAE(d_in, sparsity, site=site, dtype=dtype, metadata=config["metadata"])
    try:
        sae.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{weights} does not fit {config_file}: {reason}") from error
    return sae.to(device)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
