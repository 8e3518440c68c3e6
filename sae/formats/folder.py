"""Read and write folders of one JSON file and one safetensors file, as most tools save an SAE."""

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

# Key of the configuration that holds our metadata. Other tools carry it along or ignore it.
METADATA = "sae_workbench"


def write_folder(
    folder: str | Path, config: tuple[str, dict[str, Any]], weights: tuple[str, dict[str, Tensor]]
) -> None:
    """Write a configuration and weights, each given as (file name, content), atomically.

    A folder that holds only these two files is replaced. Raises UserError if it holds others.
    """
    with atomic_folder(folder, {config[0], weights[0]}) as staging:
        (staging / config[0]).write_text(json.dumps(config[1], indent=2) + "\n", encoding="utf-8")
        tensors = {name: t.detach().cpu().contiguous() for name, t in weights[1].items()}
        save_file(tensors, staging / weights[0])


def read_config(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`. Raises UserError if there is none."""
    if not file.is_file():
        raise UserError(f"{file} does not exist; give the folder that holds it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds a {type(config).__name__}; a JSON object is needed")
    return config


def read_int(file: Path, config: dict[str, Any], key: str, minimum: int = 1) -> int:
    """Return `config[key]`. Raises UserError unless it is an integer >= `minimum`."""
    value = config.get(key)
    if type(value) is not int or value < minimum:
        raise UserError(f"{file} has {key}={value!r}; an integer >= {minimum} is needed")
    return value


def require_values(file: Path, config: dict[str, Any], **supported: Any) -> None:
    """Raise UserError if a key is present with a value other than the supported one."""
    for key, value in supported.items():
        if config.get(key, value) != value:
            raise UserError(
                f"{file} has {key}={config[key]!r}, which is not supported; "
                f"only {value!r} can be read"
            )


def read_tensors(file: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors of `file`, in float32 or float64.

    float16 and bfloat16 are converted to float32, which is exact.

    Raises:
        UserError: The names or shapes are not those in `shapes`, or a tensor is not finite floating
            point. The message names the file and the tensor.
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
        raise UserError(f"{file} has a tensor {name}, which this kind of SAE does not have")
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
