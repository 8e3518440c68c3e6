"""What a config file says, for a benchmark: read and built without Lightning."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import sae.activations
import sae.worlds
from sae.activations import Source
from sae.autoencoder.losses import FVU, AuxK, LossTerm
from sae.autoencoder.sites import Site
from sae.autoencoder.sparsity import Sparsity, TopK
from sae.errors import UserError
from sae.training import OptimConfig, defaults

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "default.yaml"


@dataclass(frozen=True)
class Setting:
    """One config file, with what was changed on the command line."""

    values: dict[str, Any]

    @classmethod
    def read(cls, file: Path, changes: list[str]) -> Setting:
        """`changes` are `model.sae.init_args.k=64` and the like; each key must be in the file.

        Raises:
            UserError: the file is missing, or a change does not fit it.
        """
        if not file.is_file():
            raise UserError(f"--config {file} is not a file")
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        for change in changes:
            key, _, text = change.partition("=")
            *path, last = key.split(".")
            at: Any = values
            try:
                for part in path:
                    at = at[int(part)] if isinstance(at, list) else at[part]
                at[last]  # raises as the ones above do
            except (KeyError, IndexError, ValueError, TypeError):
                raise UserError(f"--set {change}: {key} is not in {file.name}") from None
            at[last] = yaml.safe_load(text)
        return cls(_numbers(values))

    @property
    def seed(self) -> int:
        return self.values.get("seed", 0)

    @property
    def model(self) -> dict[str, Any]:
        return self.values["model"]

    @property
    def data(self) -> dict[str, Any]:
        """The data section with the data module's defaults filled in."""
        defaults = {"batch_size": 2048, "block_batches": 32, "held_out_tokens": 16384}
        return {**defaults, **self.values["data"]}

    @property
    def tokens(self) -> int:
        """Activations trained on."""
        return self.values["trainer"]["max_steps"] * self.data["batch_size"]

    @property
    def dead_after(self) -> int:
        rule = defaults.dead_after(self.sparsity.d_sae, self.sparsity.k, self.tokens)
        return self.model.get("dead_after", rule)

    @property
    def refresh_steps(self) -> int:
        rule = defaults.refresh_steps(self.dead_after, self.data["batch_size"])
        return self.model.get("refresh_steps", rule)

    @property
    def optim(self) -> OptimConfig:
        options = dict(self.model.get("optim", {}))
        if "betas" in options:
            options["betas"] = tuple(options["betas"])
        return OptimConfig(**options)

    @property
    def losses(self) -> list[LossTerm]:
        if (terms := self.model.get("losses")) is None:
            return [FVU(), AuxK()]
        return [LossTerm.from_dict(_flat(term)) for term in terms]

    @property
    def site(self) -> Site:
        return Site.from_dict(_flat(self.model.get("site", {"class_path": "Autoencoder"})))

    @property
    def sparsity(self) -> TopK:
        sparsity = Sparsity.from_dict(_flat(self.model["sae"]))
        if not isinstance(sparsity, TopK):
            raise UserError(
                f"model.sae is {type(sparsity).__name__}; the peers are compared on TopK only"
            )
        return sparsity

    def source(self) -> Source:
        return _built(self.data["source"])


def _numbers(value: Any) -> Any:
    """PyYAML reads 2e-4 (no point) as a string; jsonargparse reads a number, so do we."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _flat(saved: dict[str, Any]) -> dict[str, Any]:
    name = saved["class_path"].rsplit(".", 1)[-1]
    return {"class": name, **copy.deepcopy(saved.get("init_args", {}))}


def _built(value: Any) -> Any:
    """Objects out of `{class_path, init_args}`, at any depth."""
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    name = value["class_path"].rsplit(".", 1)[-1]
    arguments = {key: _built(item) for key, item in value.get("init_args", {}).items()}
    for room in (sae.activations, sae.worlds):
        if hasattr(room, name):
            return getattr(room, name)(**arguments)
    raise UserError(f"class_path {name} is in neither sae.activations nor sae.worlds")
