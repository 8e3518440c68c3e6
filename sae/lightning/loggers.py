"""TensorBoard and Weights & Biases loggers. Every run writes `metrics.csv` besides them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from sae.errors import UserError
from sae.files import write_text

DEFAULT_PROJECT = "sae"


def build_loggers(
    name: str,
    folder: Path,
    *,
    wandb: Literal["off", "offline", "online"] = "off",
    wandb_project: str | None = None,
    wandb_entity: str | None = None,
    tensorboard: bool = False,
) -> list[Logger]:
    """Return the loggers that a run asks for; nothing is written before their first use.

    Args:
        name: The name of the run.
        folder: The folder of the run, in which the loggers keep their files.
        wandb: Whether to log to Weights & Biases, and whether to upload while training.
        wandb_project: The project there; the environment variable WANDB_PROJECT, or `sae`, if None.
        wandb_entity: The user or team there; the default of the account if None.
        tensorboard: Whether to write TensorBoard files.

    Raises:
        UserError: A logger's package is not installed.
    """
    loggers: list[Logger] = []
    if wandb != "off":
        _require("wandb", f"wandb={wandb}")
        loggers.append(
            ResumableWandbLogger(
                name, folder, offline=wandb == "offline", project=wandb_project, entity=wandb_entity
            )
        )
    if tensorboard:
        _require("tensorboard", "tensorboard=true")
        loggers.append(
            TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)
        )
    return loggers


def log_settings(loggers: Iterable[Logger], settings: dict[str, Any]) -> None:
    """Hand the settings of a run to every logger."""
    for logger in loggers:
        logger.log_hyperparams(settings)


def log_row(loggers: Iterable[Logger], row: dict[str, float], step: int) -> None:
    """Hand a row of metrics to every logger, and let each write it at once."""
    for logger in loggers:
        logger.log_metrics(row, step=step)
        logger.save()


def close_loggers(loggers: Iterable[Logger]) -> None:
    """End the Weights & Biases run, so that the next run of this process starts its own."""
    for logger in loggers:
        if isinstance(logger, ResumableWandbLogger):
            logger.close()


class ResumableWandbLogger(WandbLogger):
    """A WandbLogger that continues the same Weights & Biases run when a run is resumed.

    The id of the Weights & Biases run is kept in `wandb_run_id` in the folder of the run. Offline,
    each process writes a log of its own under that id; `wandb sync --append` joins them.
    """

    def __init__(
        self, name: str, folder: Path, *, offline: bool, project: str | None, entity: str | None
    ) -> None:
        self.id_file = folder / "wandb_run_id"
        options: dict[str, Any] = {"entity": entity}
        if offline:
            options["resume"] = None  # wandb warns that it cannot resume offline
        project = project or os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT)
        super().__init__(name=name, save_dir=folder, offline=offline, project=project, **options)
        self._wandb_init.pop("anonymous")  # wandb warns about every value, None included
        if "WANDB_SWEEP_ID" in os.environ:
            # The agent decides these, and wandb warns about every other value.
            self._wandb_init |= {"project": None, "entity": None}

    @property
    def experiment(self) -> Any:
        """The Weights & Biases run; the first access starts or continues it."""
        if self._experiment is not None:
            return self._experiment
        # Looked up here, because --overwrite removes the folder after this object was made.
        if self.id_file.is_file() and "WANDB_SWEEP_ID" not in os.environ:
            self._wandb_init["id"] = self.id_file.read_text(encoding="utf-8").strip()
        run = super().experiment
        if self.id_file.parent.is_dir():
            write_text(self.id_file, f"{run.id}\n")
        return run

    def close(self) -> None:
        """End the Weights & Biases run, if it was started."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None


def _require(package: str, setting: str) -> None:
    """Raise UserError if `package`, which `setting` needs, is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{setting} needs a package that is not installed; pip install {package}")
