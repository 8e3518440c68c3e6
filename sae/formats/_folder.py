"""Folders of one JSON file and one safetensors file, which is how most tools save an SAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.errors import UserError
from sae.files import atomic_folder

# Key of the configuration under which our own metadata travels; the other tools carry or ignore it.
METADATA = "sae_workbench"


def write_folder(
    folder: str | Path, config: tuple[str, dict[str, Any]], weights: tuple[str, dict[str, Tensor]]
) -> None:
    """Write the two files, each given as (name, content), all or nothing.

    A folder that holds the same two files and nothing else is replaced; any other raises UserError.
    """
    with atomic_folder(folder, {config[0], weights[0]}) as staging:
        (staging / config[0]).write_text(json.dumps(config[1], indent=2) + "\n", encoding="utf-8")
        tensors = {name: t.detach().cpu().contiguous() for name, t in weights[1].items()}
        save_file(tensors, staging / weights[0])


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; UserError when there is none."""
    if not file.is_file():
        raise UserError(f"{file} does not exist; give the folder that holds it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds a {type(config).__name__}; a JSON object is needed")
    return config


def whole_number(file: Path, config: dict[str, Any], key: str, least: int = 1) -> int:
    """`config[key]`, which must be an integer >= `least`."""
    value = config.get(key)
    if type(value) is not int or value < least:
        raise UserError(f"{file} has {key}={value!r}; a whole number >= {least} is needed")
    return value


def demand(file: Path, config: dict[str, Any], **accepted: Any) -> None:
    """Refuse a configuration in which a key is there with another value than the one accepted."""
    for key, value in accepted.items():
        if config.get(key, value) != value:
            raise UserError(
                f"{file} has {key}={config[key]!r}, which cannot be read yet; only {value!r} can"
            )


def read_tensors(file: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of `file`, exactly those named, of these shapes, finite; at least float32.

    float16 and bfloat16 are widened, which is exact. UserError names the file and the tensor.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist; the folder is incomplete")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from error
    for name in shapes.keys() - tensors.keys():
        raise UserError(f"{file} has no tensor {name}; it has {', '.join(sorted(tensors))}")
    for name in tensors.keys() - shapes.keys():
        raise UserError(f"{file} has a tensor {name}, whose part in this SAE is not known")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{file}: {name} has shape {list(tensor.shape)}; "
                f"the configuration says {list(shape)}"
            )
        if not tensor.is_floating_point():
            raise UserError(f"{file}: {name} is {tensor.dtype}; floating point is needed")
        if not tensor.isfinite().all():
            raise UserError(f"{file}: {name} holds NaN or infinite values")
    dtype = torch.promote_types(next(iter(tensors.values())).dtype, torch.float32)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
