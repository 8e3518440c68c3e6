"""Read and write an SAE folder: `sae.safetensors`, and `sae.json` with its checksum."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.errors import UserError
from sae.files import atomic_folder

FORMAT = 1
WEIGHTS, CONFIG = "sae.safetensors", "sae.json"
IN_RUN = "sae"  # the SAE folder inside a run folder


def write(folder: str | Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files to `folder`, or neither; raises UserError if it holds other files."""
    with atomic_folder(folder, {WEIGHTS, CONFIG}) as staging:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, staging / WEIGHTS)
        config = {"format": FORMAT, "sha256": _sha256(staging / WEIGHTS), **config}
        (staging / CONFIG).write_text(json_text(config, "an SAE") + "\n", encoding="utf-8")


def json_text(value: Any, name: str) -> str:
    """Return a value as JSON: numpy numbers and arrays as Python's, paths as strings.

    Raises UserError, with the name of the value, if it holds another object, such as a function.
    """
    try:
        return json.dumps(value, indent=2, default=_json_value)
    except TypeError as error:
        raise UserError(
            f"{name} cannot be saved: {error}; use numbers, strings, lists and dicts"
        ) from None


def _json_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"it has an object of type {type(value).__name__}")


def find(folder: str | Path) -> Path:
    """Return the SAE folder that `folder` is, or that the run in `folder` ended with.

    Raises UserError for a run that trained several SAEs, and for one that did not finish.
    """
    folder = Path(folder)
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        return folder
    if (folder / IN_RUN / CONFIG).exists():
        return folder / IN_RUN
    members = sorted(path.parent.parent.name for path in folder.glob(f"*/{IN_RUN}/{CONFIG}"))
    if members:
        raise UserError(
            f"{folder} is a run that trained several SAEs: {', '.join(members)}; "
            f"give the folder of one, such as {folder / members[0]}"
        )
    if (folder / "config.yaml").exists():
        raise UserError(
            f"{folder} is a run without a finished SAE; resume it with "
            f"`python train.py fit --resume {folder}`"
        )
    return folder


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the tensors that `write` saved.

    Raises UserError, with the name of the file, if one is missing or damaged.
    """
    weights, config_file = Path(folder) / WEIGHTS, Path(folder) / CONFIG
    for file in (config_file, weights):
        if not file.is_file():
            raise UserError(
                f"{file} does not exist; give a folder that SAE.save wrote, or the folder of a run"
            )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        version, checksum = config["format"], config["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config_file} is not a description of an SAE: {error!r}") from error
    if version != FORMAT:
        raise UserError(
            f"{config_file} has format {version}, but this version reads format {FORMAT}; "
            "update the package"
        )
    if _sha256(weights) != checksum:
        raise UserError(f"{weights} does not match its checksum: it is truncated or was changed")
    try:
        return config, load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights} cannot be read: {error}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
