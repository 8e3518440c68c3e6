"""One autoencoder of a run while it is trained: its learner, its rows of metrics, how it fares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.metrics.firing import Firing
from sae.metrics.fvu import FVU as HeldOutFVU
from sae.runs.metrics_csv import MetricsCSV
from sae.training import Learner
from sae.training.cuda_graph import GraphedStep
from sae.training.train_config import TrainConfig

# A member has diverged whose FVU is above 100, where 1 is the mean alone, and above ten times its
# first one: dense codes of random directions begin at 140 and more.
DIVERGED, TIMES = 100.0, 10.0


class Member(nn.Module):
    """Args:
        name: what it is called in tables; also its folder, where a run has several.
        recipe: what it is, and how it is trained.
        folder: where its `metrics.csv` goes.
        resume_step: rows after it are dropped, for they will be made again.

    Attributes:
        learner: set up by `start`; None again once it was stopped, for its memory.
        stopped: why it no longer learns, and at which step; None while it does.
        last_read: its last row of training metrics.
        held_out: its last figures on held-out activations.
        density: share of them that each latent fired on, float64 [d_sae].
    """

    def __init__(
        self, name: str, recipe: TrainConfig, folder: Path, *, resume_step: int | None = None
    ) -> None:
        super().__init__()
        self.name, self.recipe, self.folder = name, recipe, folder
        self.learner: Learner | None = None
        self.stopped: dict[str, Any] | None = None
        self.last_read: dict[str, float] = {}
        self.held_out: dict[str, float] = {}
        self.first_fvu = 0.0
        self.rows = MetricsCSV(folder, resume_step=resume_step)

    @property
    def live(self) -> bool:
        return self.stopped is None

    def begin(self, first_block: dict[str, Tensor]) -> None:
        """Before the first step, and after a resume."""
        if self.learner.scale is None:
            self.learner.initialise(first_block)
        self.step = GraphedStep(self.learner) if self.recipe.cuda_graph else self.learner.step

    def read(self) -> dict[str, float]:
        """Its row of training metrics since the last call. Waits for the device. A member whose
        loss is no number any more, or whose error is absurd, is stopped."""
        self.last_read = self.learner.read()
        fvu = self.last_read["fvu"]
        loss = self.last_read.get("loss", self.last_read.get("objective", fvu))
        self.first_fvu = self.first_fvu or fvu
        bearable = max(DIVERGED, TIMES * self.first_fvu)
        if not (math.isfinite(loss) and fvu < bearable):
            self.stop(f"diverged: FVU {fvu:.3g}, loss {loss:.3g}")
        return self.last_read

    def stop(self, reason: str) -> None:
        """It learns no more; its rows stay, its learner goes."""
        self.stopped = {"step": self.learner.steps, "tokens": self.learner.tokens, "reason": reason}
        self.learner = None
        self.step = None

    def error(self) -> UserError:
        """Why a run that has no other member ends here."""
        lr = self.recipe.optim.lr
        rate = f"model.optim.lr={lr:g}" if lr else "the learning rate that the rule chose"
        return UserError(
            f"{self.name} {self.stopped['reason']} at step {self.stopped['step']}, with {rate}; "
            "train with a lower model.optim.lr"
        )

    def start_judging(self, device: torch.device) -> None:
        self._sae: SAE = self.learner.judged()
        self._fvu = HeldOutFVU(self.learner.sae.d_out, device)
        self._firing = Firing(self.learner.sae.d_sae, device)

    def judge(self, acts: dict[str, Tensor]) -> None:
        """Take in one batch of held-out activations {hook: [batch, width]}."""
        y, y_hat, codes = self.learner.predict(acts, sae=self._sae)
        self._fvu.update(y, y_hat)
        self._firing.update(codes)

    def judged(self) -> dict[str, float]:
        self.held_out = {"held_out_fvu": self._fvu.compute(), "held_out_l0": self._firing.l0()}
        self.density = self._firing.density().cpu()
        del self._sae, self._fvu, self._firing
        return self.held_out

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides the tensors."""
        return {
            "name": self.name,
            "stopped": self.stopped,
            "last_read": self.last_read,
            "first_fvu": self.first_fvu,
            "held_out": self.held_out,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Before its tensors are loaded: those of a member that was stopped are not there."""
        self.last_read, self.held_out = state["last_read"], state["held_out"]
        self.first_fvu = state["first_fvu"]
        self.stopped = state["stopped"]
        if self.stopped is not None:
            self.learner = None
