"""Train the SAEs of a run. `sae.train` and the command line both call `train_run`."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger

from sae.autoencoder import io
from sae.errors import UserError
from sae.files import write_text
from sae.lightning.artifacts import write_artifacts
from sae.lightning.callbacks import SaveCheckpoints
from sae.lightning.checkpoint_io import SafeCheckpointIO
from sae.lightning.datamodule import ActivationDataModule
from sae.lightning.loggers import close_loggers, log_settings
from sae.lightning.module import SAEModule
from sae.lightning.notebook import progress_callback
from sae.lightning.seed_agreement import SeedAgreement, seed_groups
from sae.progress import progress as show_progress
from sae.runs.run_dir import RunDir
from sae.training.member import Member
from sae.training.run_settings import PYTHON_ONLY, RunSettings


class Stopped(KeyboardInterrupt):
    """The user stopped the run; its last step is saved in a checkpoint.

    Attributes:
        step: The last step.
        steps: Length of the run in steps.
        folder: Folder of the run.
    """

    def __init__(self, step: int, steps: int, folder: Path) -> None:
        super().__init__(f"stopped at step {step} of {steps}, saved in {folder}")
        self.step, self.steps, self.folder = step, steps, folder


@dataclass(frozen=True)
class FinishedRun:
    """The folders and the final metrics of a finished run.

    Attributes:
        folder: Folder of the run.
        member_folders: Folder of each member, by name; a single member's is the run's.
        summary: Contents of `summary.json`: the final metrics.
    """

    folder: Path
    member_folders: dict[str, Path]
    summary: dict[str, Any]


def train_run(
    settings: RunSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> FinishedRun:
    """Train the members of a run, evaluate them and write the run's folder.

    Args:
        settings: The run.
        resume: Continue at the last checkpoint in the run's folder.
        overwrite: Replace a run of that name.
        callbacks: Lightning callbacks besides those of every run.
        loggers: Lightning loggers besides `metrics.csv`.
        progress: Show the progress of training.

    Raises:
        UserError: The folder holds another run, or the settings cannot work.
        Stopped: The user stopped the run with Ctrl-C; a checkpoint holds its last step.
    """
    if progress:
        callbacks = [progress_callback(settings.several), *callbacks]
    with quiet_lightning():
        return _train(settings, resume, overwrite, callbacks, loggers)


def _train(
    settings: RunSettings,
    resume: bool,
    overwrite: bool,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> FinishedRun:
    run = RunDir(settings.folder)
    step, checkpoint = run.resume_point() if resume else (None, None)
    datamodule = ActivationDataModule(settings.data, settings.steps_per_call)
    callbacks = [SaveCheckpoints(run, every=settings.checkpoint_every), *callbacks]
    agreement = None
    if groups := seed_groups(settings.member_configs):
        agreement = SeedAgreement(groups, run.path, resume_step=step)
        callbacks = [agreement, *callbacks]
    trainer = build_trainer(settings, callbacks=callbacks, loggers=loggers)
    member_dirs = {name: run.member(name) if settings.several else run for name in settings.members}
    if not resume:
        run.start(overwrite=overwrite)
    # The model is loaded before Lightning starts: a Ctrl-C is an ordinary KeyboardInterrupt here,
    # while Lightning would turn it into a SystemExit.
    settings.data.source.setup(trainer.strategy.root_device)
    # Metadata that cannot be saved, and hooks that do not exist, are refused before training.
    io.json_text(settings.data.source.metadata(), "the metadata of data.source")
    for config in settings.members.values():
        config.site.bind(settings.data.source.widths)
    if not resume:
        _write_configs(run, member_dirs, settings)
    members = [
        Member(name, config, member_dirs[name].path, resume_step=step)
        for name, config in settings.members.items()
    ]
    module = SAEModule(members)

    log_settings(trainer.loggers, settings.config)
    try:
        _fit(trainer, module, datamodule, checkpoint)
        if module.steps < settings.steps:
            raise Stopped(module.steps, settings.steps, run.path)
        module.validate_if_due()
        with show_progress("computing the final metrics"):
            folders = list(member_dirs.values())
            summary = write_artifacts(run, folders, module, settings.data, trainer, agreement)
    finally:
        close_loggers(trainer.loggers)
    return FinishedRun(run.path, {name: d.path for name, d in member_dirs.items()}, summary)


def _fit(
    trainer: Trainer, module: SAEModule, datamodule: ActivationDataModule, checkpoint: Path | None
) -> None:
    """Run Lightning's loop, and turn its exit after a Ctrl-C back into a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:
        # Lightning has caught a KeyboardInterrupt, ignores SIGINT from then on, and exits with 1.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stop


def build_trainer(
    settings: RunSettings,
    *,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """Return Lightning's Trainer for a stream, which has steps and no epochs.

    Raises:
        UserError: Lightning does not accept a setting, such as an unknown accelerator.
    """
    try:
        return Trainer(
            max_steps=settings.steps,
            log_every_n_steps=settings.log_every,
            # Lightning counts calls between two validations, and steps everywhere else.
            val_check_interval=settings.validate_every // settings.steps_per_call,
            accelerator=settings.accelerator,
            devices=settings.devices,
            deterministic=settings.deterministic,
            profiler=settings.profiler,
            callbacks=list(callbacks),
            logger=list(loggers),
            plugins=[SafeCheckpointIO()],
            num_sanity_val_steps=0,
            check_val_every_n_epoch=None,
            enable_model_summary=False,
            # If `callbacks` has no bar or checkpoint callback, Lightning would add its own.
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
            enable_checkpointing=False,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        if settings.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
            raise UserError(
                f"trainer.accelerator={settings.accelerator!r} needs a CUDA device, and this "
                "machine has none that torch can use; leave it out"
            ) from error
        if isinstance(settings.devices, list) and "CPUAccelerator" in str(error):
            raise UserError(
                f"trainer.devices={settings.devices} is the number of a GPU, but the run is on the "
                "CPU; leave it out"
            ) from error
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def device_of(settings: RunSettings) -> torch.device:
    """Return the device that a run with these settings trains on.

    Raises:
        UserError: Lightning does not accept the accelerator or the devices.
    """
    with quiet_lightning():
        return build_trainer(settings).strategy.root_device


def _write_configs(run: RunDir, member_dirs: dict[str, RunDir], settings: RunSettings) -> None:
    configs = {run.path: settings.config}
    configs |= {member_dirs[name].path: c for name, c in settings.member_configs.items()}
    for path, config in configs.items():
        path.mkdir(parents=True, exist_ok=True)
        write_text(RunDir(path).config, yaml_of(config))


def yaml_of(config: dict[str, Any]) -> str:
    """Return settings as the text of a config file."""
    text = yaml.dump(
        config,
        Dumper=_WithoutAliases,
        default_flow_style=False,
        allow_unicode=True,
        sort_keys=False,
    )
    if PYTHON_ONLY in config:
        text = (
            f"# The settings in {PYTHON_ONLY} are Python objects, which cannot be written here. To "
            "continue this run,\n# call sae.train with the same arguments and data, its name and "
            "resume=True.\n" + text
        )
    return text


class _WithoutAliases(yaml.SafeDumper):
    """A YAML dumper that writes repeated values in full instead of as anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's tips, hardware notes and warnings that the user cannot act on."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        for message in (
            ".*is smaller than the logging interval.*",  # the last row is written all the same
            ".*LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
