"""`fit`: from arguments to a trained autoencoder in its run folder."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from sae.cli.config import Settings, default_config
from sae.errors import UserError
from sae.files import write_text
from sae.lightning import seed_agreement as seeds
from sae.lightning.artifacts import finish
from sae.lightning.callbacks import Members, ProgressBarWithMetrics, ProgressLines, SaveCheckpoints
from sae.lightning.checkpoint_io import SafeCheckpointIO
from sae.lightning.loggers import build_loggers, close_loggers, log_settings
from sae.lightning.module import SAEModule
from sae.runs.run_dir import RunDir
from sae.training.member import Member

STOPPED = 130


def fit(args: list[str]) -> int:
    """`train` by the command line; returns the exit code."""
    quiet()
    return train(*with_config(args))


def train(
    args: list[str],
    folder: RunDir | None,
    *,
    sweep: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Train, evaluate and write the run folder, with a folder in it for each member where the run
    has several; returns the exit code.

    Args:
        args: settings, `--config` among them.
        folder: of the run to resume, at its last checkpoint; None: of a new one.
        sweep: folder of the sweep that this is a wave of, which says what was found.
        callbacks: Lightning's, besides those of every run.
    """
    step, checkpoint = folder.resume_point() if folder else (None, None)

    settings = Settings(args, lambda config: _parts(config, folder, callbacks))
    run = folder or _folder_of(settings.config)
    data, trainer = settings.datamodule, settings.trainer
    if trainer.max_steps < 1:
        raise UserError(
            f"trainer.max_steps={trainer.max_steps}; give the length of the run in steps"
        )
    places = [run.member(name) if settings.config.members else run for name in settings.recipes]
    if folder is None:
        run.start(overwrite=settings.config.overwrite)
        wanted = {run.path: settings.config}
        wanted |= {p.path: c for p, c in zip(places, settings.alone.values(), strict=True)}
        for path, config in wanted.items():
            path.mkdir(parents=True, exist_ok=True)
            write_text(RunDir(path).config, _dump(settings, config))
    members = [
        Member(name, recipe, place.path, resume_step=step)
        for (name, recipe), place in zip(settings.recipes.items(), places, strict=True)
    ]
    module = SAEModule(members)
    across = None
    if found := seeds.groups(settings.alone):
        across = seeds.AcrossSeeds(found, run.path, resume_step=step)
        trainer.callbacks.insert(0, across)

    log_settings(trainer.loggers, yaml.safe_load(_dump(settings, settings.config)))
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)

    if module.steps < trainer.max_steps:
        close_loggers(trainer.loggers)
        again = f"sweep --resume {sweep}" if sweep else f"fit --resume {run.path}"
        sys.stderr.write(
            f"stopped at step {module.steps} of {trainer.max_steps}, saved; go on with:\n"
            f"  python train.py {again}\n"
        )
        # An agent of Weights & Biases that stops a trial takes any code above 0 for a failure, and
        # gives up after five.
        return 0 if "WANDB_SWEEP_ID" in os.environ else STOPPED
    module.make_up()
    sys.stdout.write("trained; now the figures on held-out text\n")
    sys.stdout.flush()
    found = finish(run, places, module, data, trainer, across)
    close_loggers(trainer.loggers)
    sys.stdout.write("" if sweep else found)
    return 0


def _dump(settings: Settings, config: Namespace) -> str:
    """Return the settings as the YAML of `config.yaml`."""
    return settings.parser.dump(config, skip_unset=False, skip_link_targets=True)


def with_config(args: list[str]) -> tuple[list[str], RunDir | None]:
    """Arguments with the config file spelled out, and the folder of a run to resume, if any."""
    args = [part for arg in args for part in _split(arg)]
    if "--resume" in args:
        at = args.index("--resume")
        if at + 1 == len(args):
            raise UserError("--resume needs the folder of a run, such as runs/default")
        if "--config" in args:
            raise UserError("--resume takes its settings from the run; leave out --config")
        folder = RunDir(args[at + 1])
        rest = args[:at] + args[at + 2 :]
        return ["--config", str(folder.config), *rest], folder
    wants_help = any(arg in ("-h", "--help") or arg.endswith(".help") for arg in args)
    if "--config" not in args and "-c" not in args and not wants_help:
        args = ["--config", str(default_config()), *args]
    return args, None


def _split(arg: str) -> list[str]:
    """`--resume=X` and `--config=X` as two words."""
    for flag in ("--resume", "--config"):
        if arg.startswith(flag + "="):
            return [flag, arg[len(flag) + 1 :]]
    return [arg]


def _folder_of(config: Namespace) -> RunDir:
    if not config.name or Path(config.name).name != config.name:
        raise UserError(f"name={config.name!r} is not the name of a folder; leave out any /")
    return RunDir(Path(config.runs) / config.name)


def _parts(
    config: Namespace, folder: RunDir | None, callbacks: Sequence[Callback]
) -> dict[str, list[Any]]:
    run = folder or _folder_of(config)
    if not sys.stdout.isatty():
        progress: Callback = ProgressLines()
    else:
        progress = Members() if config.members else ProgressBarWithMetrics(refresh_rate=10)
    return {
        "logger": _loggers(config, run),
        "callbacks": [
            progress,
            SaveCheckpoints(run, every=config.checkpoint_every),
            *callbacks,
        ],
        "plugins": [SafeCheckpointIO()],
    }


def _loggers(config: Namespace, run: RunDir) -> list[Logger]:
    return build_loggers(
        config.name,
        run.path,
        wandb=config.wandb,
        wandb_project=config.wandb_project,
        wandb_entity=config.wandb_entity,
        tensorboard=config.tensorboard,
    )


def quiet() -> None:
    """Only what the user can act on: Lightning's tips and notes on hardware are not that."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*is smaller than the logging interval.*",  # the last row is written all the same
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
