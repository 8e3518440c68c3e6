"""Read a config file and build its objects for a benchmark, without Lightning."""

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
class BenchConfig:
    """The settings of one config file, with the changes made on the command line."""

    values: dict[str, Any]

    @classmethod
    def read(cls, file: Path, changes: list[str]) -> BenchConfig:
        """Read a config file and change some of its settings.

        Args:
            file: The config file.
            changes: Changes such as `model.sae.init_args.k=64`. Each key must be in the file.

        Raises:
            UserError: If the file is missing, or if a change does not fit it.
        """
        if not file.is_file():
            raise UserError(f"--config {file} is not a file")
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        for change in changes:
            key, _, text = change.partition("=")
            *path, last = key.split(".")
            section: Any = values
            try:
                for part in path:
                    section = section[int(part)] if isinstance(section, list) else section[part]
                section[last]  # raises the same errors as the lines above
            except (KeyError, IndexError, ValueError, TypeError):
                raise UserError(f"--set {change}: {key} is not in {file.name}") from None
            section[last] = yaml.safe_load(text)
        return cls(_numbers(values))

    @property
    def seed(self) -> int:
        return self.values.get("seed", 0)

    @property
    def model(self) -> dict[str, Any]:
        return self.values["model"]

    @property
    def data(self) -> dict[str, Any]:
        """The data section, with the defaults of the data module filled in."""
        defaults = {"batch_size": 2048, "block_batches": 32, "held_out_tokens": 16384}
        return {**defaults, **self.values["data"]}

    @property
    def tokens(self) -> int:
        """Number of training activations."""
        return self.values["trainer"]["max_steps"] * self.data["batch_size"]

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a latent counts as dead."""
        rule = defaults.dead_after(self.sparsity.d_sae, self.sparsity.k, self.tokens)
        return self.model.get("dead_after", rule)

    @property
    def refresh_steps(self) -> int:
        """Steps between two updates of the list of dead latents."""
        rule = defaults.refresh_steps(self.dead_after, self.data["batch_size"])
        return self.model.get("refresh_steps", rule)

    @property
    def optim(self) -> OptimConfig:
        """The optimizer's settings."""
        options = dict(self.model.get("optim", {}))
        if "betas" in options:
            options["betas"] = tuple(options["betas"])
        return OptimConfig(**options)

    @property
    def losses(self) -> list[LossTerm]:
        """The terms of the loss."""
        if (terms := self.model.get("losses")) is None:
            return [FVU(), AuxK()]
        return [LossTerm.from_dict(_flat(term)) for term in terms]

    @property
    def site(self) -> Site:
        """The site, which says what is read and what is predicted."""
        return Site.from_dict(_flat(self.model.get("site", {"class_path": "Autoencoder"})))

    @property
    def sparsity(self) -> TopK:
        """The sparsity rule. Raises UserError if it is not TopK."""
        sparsity = Sparsity.from_dict(_flat(self.model["sae"]))
        if not isinstance(sparsity, TopK):
            raise UserError(
                f"model.sae is {type(sparsity).__name__}; other trainers are compared on TopK only"
            )
        return sparsity

    def source(self) -> Source:
        """Build the source of activations."""
        return _built(self.data["source"])


def _numbers(value: Any) -> Any:
    """Turn strings such as 2e-4 into numbers, as jsonargparse does and PyYAML does not."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _flat(saved: dict[str, Any]) -> dict[str, Any]:
    """Turn {class_path, init_args} into the flat form that `from_dict` takes."""
    name = saved["class_path"].rsplit(".", 1)[-1]
    return {"class": name, **copy.deepcopy(saved.get("init_args", {}))}


def _built(value: Any) -> Any:
    """Build the objects described by `{class_path, init_args}` dicts, at any depth."""
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    name = value["class_path"].rsplit(".", 1)[-1]
    arguments = {key: _built(item) for key, item in value.get("init_args", {}).items()}
    for package in (sae.activations, sae.worlds):
        if hasattr(package, name):
            return getattr(package, name)(**arguments)
    raise UserError(f"class_path {name} is in neither sae.activations nor sae.worlds")
