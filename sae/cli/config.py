"""Parse YAML files and flags into the settings of a run."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
    ArgumentError,
    ArgumentParser,
    Namespace,
)
from lightning.pytorch import Callback

# Classes are named by their bare names in YAML, so the parser must know them all.
import sae.autoencoder.losses
import sae.autoencoder.sites
import sae.autoencoder.sparsity
import sae.worlds  # noqa: F401
import sae_configs  # pyright: ignore[reportMissingImports] (the folder configs/, as installed)
from sae import legacy
from sae.activations import ActivationData, Source
from sae.autoencoder.registry import Registered
from sae.cli.config_errors import readable
from sae.cli.flags import expand_flags
from sae.errors import UserError
from sae.lightning.runner import device_of
from sae.training.run_settings import PYTHON_ONLY, RunSettings, check_member_names
from sae.training.train_config import TrainConfig


class ConfigParser(ArgumentParser):
    """A parser that also reads configs written with names that have since changed."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        if missing := python_only(content):
            raise UserError(
                f"{' and '.join(missing)} of this run cannot be named in a config file, because it "
                "was given in Python; to continue the run, call sae.train(..., resume=True) from "
                "Python with its name and the same arguments"
            )
        return super().parse_string(legacy.config_text(content), *args, **kwargs)


def python_only(text: str) -> list[str]:
    """Return the settings that a config file lists as given in Python only."""
    if PYTHON_ONLY not in text:
        return []
    config = yaml.safe_load(text)
    return list(config.get(PYTHON_ONLY, {})) if isinstance(config, dict) else []


class TrainerConfig:
    """The settings of Lightning's Trainer that apply to a stream, which has steps and no epochs.

    Args:
        max_steps: length of the run in steps; times `data.batch_size` it is the number of tokens.
        log_every_n_steps: steps between two rows of metrics.
        val_check_interval: steps between two validations on held-out activations.
        steps_per_call: steps per call of Lightning's training loop. Each call takes 0.7 ms of
            Python, which matters only where a step takes about a millisecond (a small SAE on a
            GPU). Logging, validation and checkpoints come at multiples of it.
        accelerator: auto, cpu or cuda.
        devices: how many devices, or which ones; one run uses one.
        deterministic: refuse operations whose results may differ from run to run.
        profiler: simple or advanced; Lightning then reports where time went.
        callbacks: Lightning callbacks of your own.
    """

    def __init__(
        self,
        max_steps: int,
        log_every_n_steps: int = 50,
        val_check_interval: int = 1000,
        steps_per_call: int = 1,
        accelerator: str = "auto",
        devices: int | list[int] = 1,
        deterministic: bool = False,
        profiler: str | None = None,
        callbacks: list[Callback] | None = None,
    ) -> None:
        self.max_steps = max_steps
        self.log_every_n_steps, self.val_check_interval = log_every_n_steps, val_check_interval
        self.steps_per_call = steps_per_call
        self.accelerator, self.devices = accelerator, devices
        self.deterministic, self.profiler = deterministic, profiler
        self.callbacks = callbacks


@dataclass(frozen=True)
class ParsedConfig:
    """A parsed config: the run it describes, and what the command line needs besides.

    Attributes:
        run: The settings of the run, as objects.
        options: The parsed settings as plain values, by their names in YAML.
        callbacks: The user's Lightning callbacks.
    """

    run: RunSettings
    options: Namespace
    callbacks: list[Callback]


def default_config() -> Path:
    """Return the path of `configs/default.yaml`, in the checkout or as installed."""
    for folder in sae_configs.__path__:
        if (file := Path(folder) / "default.yaml").is_file():
            return file
    raise UserError("configs/default.yaml is missing from this installation; give --config FILE")


def run_parser() -> ArgumentParser:
    """Return the parser of all settings of a run."""
    parser = ConfigParser(
        exit_on_error=False,
        prog="train.py fit",
        usage="train.py fit [--config FILE] [--resume [RUN]] [--KEY VALUE ...]",
        description="Train sparse autoencoders. Every setting can be in a YAML file (--config) or "
        "on the command line; if it is given twice, the later one counts. Example: "
        "python train.py fit --config configs/gpt2.yaml --name mine --model.sae.k 64. Without "
        "--config, the settings are those of configs/default.yaml. --resume RUN continues the "
        "interrupted run in a folder such as runs/mine with its own settings; --resume without a "
        "folder continues the run that --runs and --name (or the config) name, by default "
        "runs/default.",
    )
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="YAML file of settings")
    add("--name", type=str, default="default", help="run folder: <runs>/<name>; $VAR is filled in")
    add("--runs", type=str, default="runs", help="folder of all runs")
    add("--overwrite", type=bool, default=False, help="replace a run of that name")
    add("--seed", type=int, default=0, help="seed of the weights and of shuffling")
    add("--checkpoint_every", type=int, default=100, help="steps between two checkpoints")
    add(
        "--wandb",
        type=Literal["off", "offline", "online"],
        default="off",
        help="Weights & Biases: off, offline (no account needed) or online",
    )
    add(
        "--wandb_project",
        type=str | None,
        default=None,
        help="project there; default: WANDB_PROJECT of the environment, or sae",
    )
    add("--wandb_entity", type=str | None, default=None, help="user or team there")
    add("--tensorboard", type=bool, default=False, help="write TensorBoard files too")
    add(
        "--members",
        type=dict[str, dict[str, Any]] | None,
        default=None,
        help="train several SAEs on the same activations: by name, the settings under `model` in "
        "which each differs, such as {wide: {model.sae.d_sae: 8192}}",
    )
    parser.add_class_arguments(TrainerConfig, "trainer", sub_configs=True)
    parser.add_class_arguments(TrainConfig, "model", sub_configs=True)
    # The seed and accumulate are settings of the run and of the model.
    parser.add_class_arguments(
        ActivationData, "data", sub_configs=True, skip={"seed", "accumulate"}
    )
    return parser


def parse_config(args: list[str]) -> ParsedConfig:
    """Parse the settings of a run from flags, `--config FILE` among them.

    Raises:
        UserError: a setting is unknown, missing, or has a value that cannot work.
    """
    parser = run_parser()
    objects: Any
    try:
        options = parser.parse_args([legacy.flag(arg) for arg in expand_flags(args, parser)])
        # A sweep agent tells a trial its name only through the environment.
        options.name = os.path.expandvars(options.name)
        if "$" in options.name:
            raise UserError(
                f"name={options.name} references an unset environment variable; set it, or choose "
                "another --name"
            )
        objects = parser.instantiate_classes(options)
    except ArgumentError as error:
        raise readable(error, parser, class_parameters()) from error
    except ValueError as error:  # settings that may be null are tried as null too
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    configs = {options.name: options}
    if options.members is not None:
        configs = _member_configs(options)
    trainer: TrainerConfig = objects.trainer
    data: ActivationData = objects.data
    members = {name: _train_config(config) for name, config in configs.items()}
    data.seed = options.seed
    data.accumulate = next(iter(members.values())).accumulate
    run = RunSettings(
        name=options.name,
        data=data,
        members=members,
        steps=trainer.max_steps,
        runs=Path(options.runs),
        several=options.members is not None,
        steps_per_call=trainer.steps_per_call,
        log_every=trainer.log_every_n_steps,
        validate_every=trainer.val_check_interval,
        checkpoint_every=options.checkpoint_every,
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        deterministic=trainer.deterministic,
        profiler=trainer.profiler,
        config=_plain(parser, options),
        member_configs={name: _plain(parser, config) for name, config in configs.items()},
    )
    run.device = device_of(run)
    return ParsedConfig(run, options, trainer.callbacks or [])


def class_parameters() -> dict[str, list[str]]:
    """Return the settings of every class that a config may name, by the class's name."""
    classes = [c for family in Registered.__subclasses__() for c in family.registry.values()]
    classes += leaves(Source)
    return {c.__name__: list(inspect.signature(c).parameters) for c in classes}


def leaves(cls: type) -> list[type]:
    """Return all subclasses of a class, and theirs."""
    return [leaf for sub in cls.__subclasses__() for leaf in [sub, *leaves(sub)]]


def _plain(parser: ArgumentParser, options: Namespace) -> dict[str, Any]:
    """Return settings as plain values: what their config file holds."""
    return yaml.safe_load(parser.dump(options, skip_unset=False, skip_link_targets=True))


def _model_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, "model")
    return parser


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda part: part.as_dict())  # a class and its settings


def _train_config(options: Namespace) -> TrainConfig:
    model = options.model.clone()
    if model.seed is None:
        model.seed = options.seed
    objects: Any = _model_parser().instantiate_classes(Namespace(model=model))
    return objects.model


def _member_configs(options: Namespace) -> dict[str, Namespace]:
    """Return the settings that would train each member in a run of its own, by name."""
    if not options.members:
        raise UserError("members is empty; name at least one, or leave it out")
    check_member_names(list(options.members))
    parser, configs = _model_parser(), {}
    for name, changes in options.members.items():
        flags = []
        for key, value in changes.items():
            if not key.startswith("model.") or key == "model.accumulate":
                raise UserError(
                    f"members.{name}: {key} is the same for all members of a run; members may "
                    "differ in settings under model, except model.accumulate"
                )
            flags.append(f"--{key}={value if isinstance(value, str) else _json(value)}")
        try:
            member = parser.parse_args(flags, namespace=Namespace(model=options.model.clone()))
        except ArgumentError as error:
            raise UserError(
                f"members.{name}: {readable(error, parser, class_parameters()).message}"
            ) from error
        configs[name] = options.clone()
        # `update` would merge the settings of two classes.
        configs[name].name, configs[name].members, configs[name].model = name, None, member.model
    return configs
