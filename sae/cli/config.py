"""From arguments and YAML to objects, and from the parser's complaints to one readable line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Families are named by their bare class in YAML, so their members must be known to the parser.
import sae.autoencoder.losses
import sae.autoencoder.sites
import sae.autoencoder.sparsity
import sae.worlds  # noqa: F401
import sae_configs
from sae import legacy
from sae.cli.config_errors import readable
from sae.errors import UserError
from sae.lightning.datamodule import ActivationDataModule
from sae.training.train_config import TrainConfig

# Of a member: it becomes a folder, and part of a column's name.
_NAME = re.compile(r"(?!(?:checkpoints|consensus)$)\w[\w.,=+-]*")


def default_config() -> Path:
    """`configs/default.yaml`, of the checkout or as installed."""
    for folder in sae_configs.__path__:
        if (file := Path(folder) / "default.yaml").is_file():
            return file
    raise UserError("configs/default.yaml is missing from this installation; give --config FILE")


def make_trainer(
    max_steps: int,
    log_every_n_steps: int = 50,
    val_check_interval: int = 1000,
    steps_per_call: int = 1,
    accelerator: str = "auto",
    devices: int | list[int] = 1,
    deterministic: bool = False,
    profiler: str | None = None,
    callbacks: list[Callback] | None = None,
) -> Trainer:
    """The Trainer's settings that mean something to a stream, which has steps and no epochs.

    Args:
        max_steps: length of the run; times `data.batch_size` it is the number of tokens.
        log_every_n_steps: steps between two rows of metrics.
        val_check_interval: steps between two looks at held-out text.
        steps_per_call: steps that Lightning hands over at a time. It takes 0.7 ms of Python for
            each call, which shows only where a step takes a millisecond or so (a small SAE on a
            GPU). What happens between steps, such as a checkpoint, comes at multiples of it.
        accelerator: auto, cpu or cuda.
        devices: how many, or which; one run uses one.
        deterministic: whether torch refuses operations that may differ from run to run.
        profiler: simple or advanced: where Lightning says the time went.
        callbacks: Lightning callbacks of your own.
    """
    return _stream_trainer(dict(locals()), {})


def _stream_trainer(settings: dict[str, Any], parts: dict[str, list[Any]]) -> Trainer:
    callbacks = [*parts.get("callbacks", []), *(settings["callbacks"] or [])]
    calls = settings.pop("steps_per_call")
    # Lightning counts calls between two validations, and steps everywhere else.
    settings["val_check_interval"] //= calls
    return Trainer(
        **settings | parts | {"callbacks": callbacks},
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        enable_model_summary=False,
        # Without a bar or a checkpoint callback among ours, Lightning would add its own.
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        enable_checkpointing=False,
    )


class ConfigParser(LightningArgumentParser):
    """A parser that also reads configs written with names that have since changed."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        return super().parse_string(legacy.config_text(content), *args, **kwargs)


class Settings(LightningCLI):
    """A LightningCLI that only parses and builds: what is done with it is `fit`'s business.

    Args:
        args: the command line, without the command.
        parts: given the settings, the Trainer's logger, callbacks and plugins.

    Attributes:
        config: all settings, resolved.
        alone: by name of a member of the run, the settings that would train it in a run of its own;
            a run without `members` has one, of the run's name.
        recipes: by the same names, what `model` says of each.
        datamodule, trainer: built.
    """

    def __init__(self, args: list[str], parts: Callable[[Namespace], dict[str, Any]]) -> None:
        self._parts = parts
        try:
            super().__init__(
                datamodule_class=ActivationDataModule,
                save_config_callback=None,
                trainer_class=make_trainer,
                parser_class=ConfigParser,
                seed_everything_default=False,
                parser_kwargs={
                    "exit_on_error": False,
                    "prog": "train.py fit",
                    "usage": "train.py fit [--config FILE] [--resume RUN] [--KEY VALUE ...]",
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
        except ValueError as error:  # settings that may be null are tried as null too
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.config = parser.parse_args([legacy.flag(arg) for arg in args])
        # A sweep's agent tells a trial its name in the environment, and in no other way.
        self.config.name = os.path.expandvars(self.config.name)
        if "$" in self.config.name:
            raise UserError(
                f"name={self.config.name} speaks of an environment variable that is not set; set "
                "it, or choose another --name"
            )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Nothing: Lightning's own `--seed_everything` would stand beside `--seed`."""

    def _set_seed(self) -> None:
        """Nothing: all that is random here has a generator of its own."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(make_trainer, "trainer")
        parser.add_class_arguments(TrainConfig, "model")
        parser.add_lightning_class_args(ActivationDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name",
            type=str,
            default="default",
            help="the run: <runs>/<name>; $VARIABLE is filled in",
        )
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
            "--wandb_project",
            type=str | None,
            default=None,
            help="the project there; WANDB_PROJECT of the environment, or sae, if left out",
        )
        parser.add_argument(
            "--wandb_entity", type=str | None, default=None, help="the user or team there"
        )
        parser.add_argument(
            "--tensorboard", type=bool, default=False, help="write TensorBoard files too"
        )
        parser.add_argument(
            "--members",
            type=dict[str, dict[str, Any]] | None,
            default=None,
            help="several autoencoders on one stream: by name, the settings under `model` in which "
            "each differs from the others, such as {wide: {model.sae.d_sae: 8192}}",
        )
        parser.dump_header = None  # Lightning's version, which `summary.json` has
        parser.link_arguments("seed", "data.seed")
        parser.link_arguments("trainer.steps_per_call", "data.steps_per_call")
        parser.link_arguments("model.accumulate", "data.accumulate")

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self.config_init.data
        self.alone = {self.config.name: self.config}
        if self.config.members is not None:
            self.alone = _members(self.config)
        self.recipes = {name: _recipe(config) for name, config in self.alone.items()}
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        parts = self._parts(self.config)
        calls = self.config.trainer.steps_per_call
        if calls < 1:
            raise UserError(f"trainer.steps_per_call={calls}; give at least 1")
        for name in ("checkpoint_every", "trainer.val_check_interval", "trainer.log_every_n_steps"):
            if self.config[name] % calls:
                raise UserError(
                    f"{name}={self.config[name]} is no multiple of trainer.steps_per_call={calls}; "
                    "make it one"
                )
        try:
            return _stream_trainer(dict(self.config_init.trainer), parts)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _recipe_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, "model")
    return parser


def _recipe(config: Namespace) -> TrainConfig:
    model = config.model.clone()
    if model.seed is None:
        model.seed = config.seed
    return _recipe_parser().instantiate_classes(Namespace(model=model)).model


def _members(config: Namespace) -> dict[str, Namespace]:
    """The settings of each member as a run of its own."""
    if not config.members:
        raise UserError("members is empty; name at least one, or leave it out")
    parser, found = _recipe_parser(), {}
    for name, changes in config.members.items():
        if not _NAME.fullmatch(name):
            raise UserError(
                f"members: {name!r} cannot be the name of a folder; use letters, digits and _-+.=,"
            )
        flags = []
        for key, value in changes.items():
            if not key.startswith("model.") or key == "model.accumulate":
                raise UserError(
                    f"members.{name}: {key} is the same for all of a run; members differ in "
                    "settings under model, model.accumulate aside"
                )
            flags.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
        try:
            own = parser.parse_args(flags, namespace=Namespace(model=config.model.clone()))
        except ArgumentError as error:
            raise UserError(f"members.{name}: {readable(error, parser)}") from error
        found[name] = config.clone()
        # `update` would merge the settings of two classes.
        found[name].name, found[name].members, found[name].model = name, None, own.model
    return found
