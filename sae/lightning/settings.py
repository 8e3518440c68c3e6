"""From arguments and YAML to objects, and from the parser's complaints to one readable line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Families are named by their bare class in YAML, so their members must be known to the parser.
import sae.autoencoder.objective
import sae.autoencoder.sites
import sae.autoencoder.sparsity
import sae.worlds  # noqa: F401
import sae_configs
from sae.errors import UserError
from sae.lightning.complaints import readable
from sae.lightning.datamodule import ActivationDataModule
from sae.lightning.module import SAEModule


def default_config() -> Path:
    """`configs/default.yaml`, of the checkout or as installed."""
    for folder in sae_configs.__path__:
        if (file := Path(folder) / "default.yaml").is_file():
            return file
    raise UserError("configs/default.yaml is missing from this installation; give --config FILE")


class Settings(LightningCLI):
    """A LightningCLI that only parses and builds: what is done with it is `fit`'s business.

    Args:
        args: the command line, without the command.
        parts: given the settings, the Trainer's logger, callbacks and plugins.
    """

    def __init__(self, args: list[str], parts: Callable[[Namespace], dict[str, Any]]) -> None:
        self._parts = parts
        try:
            super().__init__(
                SAEModule,
                ActivationDataModule,
                save_config_callback=None,
                trainer_defaults={
                    "num_sanity_val_steps": 0,
                    "check_val_every_n_epoch": None,  # a stream has no epochs
                    "enable_model_summary": False,
                },
                seed_everything_default=False,
                parser_kwargs={
                    "exit_on_error": False,
                    "prog": "train.py fit",
                    "description": "Train a sparse autoencoder. Every setting can stand in a YAML "
                    "file (--config) or on the command line, the later one winning.",
                },
                args=args,
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except ArgumentError as error:
            raise readable(error, self.parser) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="default", help="the run: <runs>/<name>")
        parser.add_argument("--runs", type=str, default="runs", help="folder that runs are put in")
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="replace a run of that name"
        )
        parser.add_argument("--seed", type=int, default=0, help="of weights and of shuffling")
        parser.add_argument(
            "--checkpoint_every", type=int, default=100, help="steps between two checkpoints"
        )
        parser.add_argument(
            "--wandb",
            type=Literal["off", "offline", "online"],
            default="off",
            help="Weights & Biases: off, offline (no account) or online",
        )
        parser.add_argument(
            "--tensorboard", type=bool, default=False, help="write TensorBoard files too"
        )
        parser.link_arguments("seed", "model.seed")
        parser.link_arguments("seed", "data.seed")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        chosen = self.config_init.trainer
        for name, ours in self._parts(self.config).items():
            theirs = chosen.get(name) or []
            kwargs[name] = [*ours, *(theirs if isinstance(theirs, list) else [theirs])]
        # Without these Lightning adds a bar and a checkpoint callback of its own.
        callbacks = kwargs.get("callbacks", [])
        kwargs["enable_progress_bar"] = any(isinstance(c, ProgressBar) for c in callbacks)
        kwargs["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
