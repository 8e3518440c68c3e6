"""The settings of one training run, as objects."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae.activations import ActivationData
from sae.errors import UserError
from sae.training.train_config import TrainConfig

MEMBER_NAME = re.compile(r"(?!(?:checkpoints|consensus)$)\w[\w.,=+-]*")
"""Names that a member may have: it becomes a folder of the run and part of a column's name."""
ACCELERATORS = ("auto", "cpu", "cuda", "gpu")
PROFILERS = (None, "simple", "advanced")

PYTHON_ONLY = "python_only"
"""Config key that lists the settings a config file cannot name, such as tensors."""


@dataclass(kw_only=True)
class RunSettings:
    """The settings of a training run: its activations, the SAEs that learn from them, its length.

    A run may train several SAEs on the same activations; each of them is called a member.

    Attributes:
        name: Name of the run; its folder is `<runs>/<name>`.
        data: Where the activations come from, and in which batches.
        members: The SAEs to train and how to train them, by name. A run of one SAE has one member,
            with the name of the run.
        steps: Number of optimizer steps.
        runs: Folder of all runs.
        several: Whether each member has a folder of its own inside the run's folder.
        steps_per_call: Steps per call of Lightning's training loop.
        log_every: Steps between two rows of metrics.
        validate_every: Steps between two validations on held-out activations.
        checkpoint_every: Steps between two checkpoints.
        accelerator: Lightning's name of the device: "auto", "cpu" or "cuda".
        devices: How many devices, or which ones; a run uses one.
        deterministic: Whether torch refuses operations that may differ from run to run.
        profiler: "simple" or "advanced" for Lightning's report of where time went.
        device: The device these settings choose on this machine.
        config: All settings as plain values, as `config.yaml` holds them.
        member_configs: The settings that would train each member in a run of its own, by name.

    Raises:
        UserError: a count is below 1, or intervals do not fit `steps_per_call`.
    """

    name: str
    data: ActivationData
    members: dict[str, TrainConfig]
    steps: int
    runs: Path = Path("runs")
    several: bool = False
    steps_per_call: int = 1
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 100
    accelerator: str = "auto"
    devices: int | list[int] = 1
    deterministic: bool = False
    profiler: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    config: dict[str, Any] = field(default_factory=dict)
    member_configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_folder_name(self.name)
        if self.several:
            check_member_names(list(self.members))
        if self.accelerator not in ACCELERATORS:
            raise UserError(
                f"trainer.accelerator={self.accelerator!r} is not one of {', '.join(ACCELERATORS)}"
            )
        if self.profiler not in PROFILERS:
            raise UserError(f"trainer.profiler={self.profiler!r} is not simple or advanced")
        if not _is_one_device(self.devices):
            raise UserError(
                f"trainer.devices={self.devices!r}; a run uses one device: give 1, or its number "
                "in a list, such as [0]"
            )
        if not _is_count(self.steps):
            raise UserError(
                f"trainer.max_steps={self.steps!r}; give the length of the run in whole steps"
            )
        counts = {
            "trainer.steps_per_call": self.steps_per_call,
            "trainer.log_every_n_steps": self.log_every,
            "trainer.val_check_interval": self.validate_every,
            "checkpoint_every": self.checkpoint_every,
        }
        for name, value in counts.items():
            if not _is_count(value):
                raise UserError(f"{name}={value!r}; give a whole number of at least 1")
        for name in ("checkpoint_every", "trainer.val_check_interval", "trainer.log_every_n_steps"):
            if counts[name] % self.steps_per_call:
                raise UserError(
                    f"{name}={counts[name]} is not a multiple of "
                    f"trainer.steps_per_call={self.steps_per_call}; make it one"
                )

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.runs / self.name

    @property
    def full_contexts(self) -> bool:
        """True if a member has a loss term that runs the language model on full contexts."""
        return any(member.full_contexts for member in self.members.values())


def check_folder_name(name: str) -> None:
    """Raise UserError unless `name` is the plain name of a folder, and so cannot leave `runs`."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise UserError(f"name={name!r} is not the name of a folder; leave out any /")
    if len(name) > 200:
        raise UserError(f"name={name[:20]!r}... has {len(name)} characters; give at most 200")


def check_member_names(names: list[str]) -> None:
    """Raise UserError for a name that cannot be a folder, and for two that differ only in case."""
    for name in names:
        if not isinstance(name, str) or not MEMBER_NAME.fullmatch(name):
            raise UserError(
                f"members: {name!r} cannot be the name of a folder; use letters, digits and _-+.=,"
            )
    if len({name.lower() for name in names}) < len(names):
        raise UserError("members: two names differ only in case; some disks take them for the same")


def _is_one_device(devices: object) -> bool:
    if isinstance(devices, list):
        return len(devices) == 1
    return devices == 1 and not isinstance(devices, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
