"""What is compared: the trainers that are given the same activations, ours among them."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from benchmarks.config import Setting
from sae.autoencoder import SAE
from sae.training import Learner
from sae_kernels.codes import Codes


@dataclass(frozen=True)
class Task:
    """What every contender is told.

    Args:
        setting: the config file.
        d_in: width of the activations.
        steps: how many batches there will be.
        sample: the first block of training activations [n, d_in], raw, as our trainer is given it.
        scale: the factor on raw activations.
        seed: of the starting weights.
    """

    setting: Setting
    d_in: int
    steps: int
    sample: Tensor
    scale: float
    seed: int

    @property
    def d_sae(self) -> int:
        return self.setting.sparsity.d_sae

    @property
    def k(self) -> int:
        return self.setting.sparsity.k

    @property
    def batch(self) -> int:
        return self.setting.data["batch_size"]

    @property
    def warmup_steps(self) -> int:
        return round(self.setting.optim.warmup * self.steps)

    @property
    def decay_steps(self) -> int:
        return round(self.setting.optim.decay * self.steps)


class Contender(ABC):
    """One trainer, set up for one run."""

    package: ClassVar[str | None] = None
    """The module that must be importable."""
    distribution: ClassVar[str | None] = None
    """Whose version is reported."""
    lr: float

    @classmethod
    def installed(cls) -> bool:
        return cls.package is None or importlib.util.find_spec(cls.package) is not None

    @classmethod
    @abstractmethod
    def variants(cls, tuned: bool) -> dict[str, dict[str, Any]]:
        """Name of a variant -> keyword arguments."""

    @abstractmethod
    def step(self, acts: Tensor) -> None:
        """Learn from a raw batch [batch, d_in]. This is what is timed."""

    @abstractmethod
    def judge(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        """Target and prediction [batch, d_in], and the codes, of a raw batch; learns nothing."""

    def finish(self) -> None:  # noqa: B027
        """What the trainer does before it hands its weights out."""


class Ours(Contender):
    def __init__(self, task: Task) -> None:
        self.site = task.setting.site.bind({"x": task.d_in})
        sae = SAE(task.d_in, task.setting.sparsity, site=self.site, seed=task.seed)
        self.learner = Learner(
            sae,
            task.setting.losses,
            task.setting.optim,
            total_steps=task.steps,
            dead_after=task.setting.dead_after,
            refresh_steps=task.setting.refresh_steps,
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

    def judge(self, acts: Tensor) -> tuple[Tensor, Tensor, Codes]:
        return self.learner.predict(self._named(acts))
