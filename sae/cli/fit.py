"""`fit`: train the SAEs that a config describes, or continue an interrupted run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from sae.cli.command import CommandParser
from sae.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Callback

STOPPED = 130


def parser() -> CommandParser:
    """Return the parser of `fit`'s own flags; `--help` is about all settings of a run."""
    parser = CommandParser(
        "fit",
        usage="[--config FILE] [--resume [RUN]] [--KEY VALUE ...]",
        description="Train sparse autoencoders.",
        example="python train.py fit --config configs/gpt2.yaml --name mine --model.sae.k 64",
        run_settings=True,
        add_help=False,
    )
    # nargs="?": bare `--resume` continues the run that the other settings name.
    parser.add_argument("--resume", type=str, nargs="?", const="", help="run folder to continue")
    return parser


def run(options: Namespace, settings: list[str]) -> int:
    """Train; returns the exit code."""
    settings, resume = with_config(settings, options.resume)
    return train_from_flags(settings, resume=resume)


def fit(args: Sequence[str]) -> int:
    """Run `fit` with these arguments; returns the exit code."""
    return run(*parser().read(args))


def train_from_flags(
    settings: list[str],
    *,
    resume: Path | None = None,
    sweep: Path | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> int:
    """Train by the settings of a command line; returns the exit code.

    Args:
        settings: Flags, `--config` among them.
        resume: Folder of the run to continue.
        sweep: Folder of the sweep that this run is a wave of; it prints the results itself.
        callbacks: Lightning callbacks besides those in the config.
        options: Passed on to `train_run`.
    """
    from sae.cli.config import parse_config
    from sae.cli.run_tables import describe_run
    from sae.lightning.loggers import build_loggers
    from sae.lightning.runner import Stopped, train_run
    from sae.runs.run_dir import RunDir

    parsed = parse_config(settings)
    run = parsed.run
    if resume is not None:
        run.runs, run.name = resume.parent, resume.name
    try:
        finished = train_run(
            run,
            resume=resume is not None,
            overwrite=parsed.options.overwrite,
            callbacks=[*callbacks, *parsed.callbacks],
            loggers=build_loggers(
                parsed.options.name,
                run.folder,
                wandb=parsed.options.wandb,
                wandb_project=parsed.options.wandb_project,
                wandb_entity=parsed.options.wandb_entity,
                tensorboard=parsed.options.tensorboard,
            ),
            **options,
        )
    except Stopped as stopped:
        command = f"sweep --resume {sweep}" if sweep else f"fit --resume {run.folder}"
        sys.stderr.write(
            f"stopped at step {stopped.step} of {stopped.steps}, saved; go on with:\n"
            f"  python train.py {command}\n"
        )
        # An agent of Weights & Biases that stops a trial takes any code above 0 for a failure, and
        # gives up after five.
        return 0 if "WANDB_SWEEP_ID" in os.environ else STOPPED
    if sweep is None:
        sys.stdout.write(describe_run(finished.summary, RunDir(finished.folder)))
    return 0


def with_config(settings: list[str], resume: str | None = None) -> tuple[list[str], Path | None]:
    """Add `--config` where it is missing: the default one, or that of the run to continue.

    Args:
        settings: Flags.
        resume: Value of `--resume`: a run folder, "" for the run that the settings name, None if
            it was not given.

    Returns:
        The flags, and the folder of the run to continue, if any.
    """
    from sae.cli.config import default_config, parse_config

    settings = _split_equals(settings, ("--config", "-c", "--name", "--runs"))
    has_config = "--config" in settings or "-c" in settings
    if resume:
        if has_config:
            raise UserError("--resume takes its settings from the run; leave out --config")
        return _of_run(Path(resume), settings), Path(resume)
    asks_help = any(arg in ("-h", "--help") or arg.endswith(".help") for arg in settings)
    if not has_config and not asks_help:
        settings = ["--config", str(default_config()), *settings]
    if resume == "":
        folder = parse_config(settings).run.folder
        for flag in ("--config", "-c", "--name", "--runs"):
            while flag in settings:
                at = settings.index(flag)
                del settings[at : at + 2]
        return _of_run(folder, settings), folder
    return settings, None


def _of_run(folder: Path, settings: list[str]) -> list[str]:
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"--resume {folder}: no config.yaml there; give the folder of a run, such as "
            "runs/default"
        )
    return ["--config", str(folder / "config.yaml"), *settings]


def _split_equals(args: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Return arguments with `--flag=value` as two words for these flags."""
    words: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        words += [flag, value] if equals and flag in flags else [arg]
    return words
