"""The interface of the trainers that are compared, and our own trainer."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from benchmarks.config import BenchConfig
from sae.autoencoder import SAE
from sae.training import Learner
from sae_kernels.codes import Codes


@dataclass(frozen=True)
class Task:
    """The task that every trainer is given.

    Attributes:
        config: The config file.
        d_in: Width of the activations.
        steps: Number of batches.
        sample: First block of training activations before scaling, shape [n, d_in].
        scale: Factor by which activations are multiplied.
        seed: Seed of the initial weights.
    """

    config: BenchConfig
    d_in: int
    steps: int
    sample: Tensor
    scale: float
    seed: int

    @property
    def d_sae(self) -> int:
        return self.config.sparsity.d_sae

    @property
    def k(self) -> int:
        return self.config.sparsity.k

    @property
    def batch(self) -> int:
        return self.config.data["batch_size"]

    @property
    def warmup_steps(self) -> int:
        return round(self.config.optim.warmup * self.steps)

    @property
    def decay_steps(self) -> int:
        return round(self.config.optim.decay * self.steps)


class Trainer(ABC):
    """A trainer, set up for one run."""

    package: ClassVar[str | None] = None
    """The module that must be importable; None if it needs none."""
    distribution: ClassVar[str | None] = None
    """The distribution of which the version is reported."""
    lr: float

    @classmethod
    def installed(cls) -> bool:
        """Return whether the trainer can run here."""
        return cls.package is None or importlib.util.find_spec(cls.package) is not None

    @classmethod
    @abstractmethod
    def variants(cls, tuned: bool) -> dict[str, dict[str, Any]]:
        """Return the keyword arguments of each variant, by its name."""

    @abstractmethod
    def step(self, acts: Tensor) -> None:
        """Take a training step on unscaled activations [batch, d_in]. This call is timed."""

    @abstractmethod
    def predict(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        """Return target, prediction (both [batch, d_in]) and codes of unscaled activations."""

    def finish(self) -> None:  # noqa: B027
        """Do what the trainer does before its weights are used."""


class Ours(Trainer):
    """Our own training step, as configured."""

    def __init__(self, task: Task) -> None:
        self.site = task.config.site.bind({"x": task.d_in})
        sae = SAE(task.d_in, task.config.sparsity, site=self.site, seed=task.seed)
        self.learner = Learner(
            sae,
            task.config.losses,
            task.config.optim,
            total_steps=task.steps,
            dead_after=task.config.dead_after,
            refresh_steps=task.config.refresh_steps,
        )
        self.learner.initialise(self._named(task.sample))
        self.lr = self.learner.lr

    @classmethod
    def variants(cls, tuned: bool) -> dict[str, dict[str, Any]]:
        return {} if tuned else {"as configured": {}}

    def _named(self, acts: Tensor) -> dict[str, Tensor]:
        return {self.site.hooks[0]: acts}

    def step(self, acts: Tensor) -> None:
        self.learner.step(self._named(acts))

    def predict(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        return self.learner.predict(self._named(acts))
