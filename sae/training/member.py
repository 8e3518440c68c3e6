"""One SAE of a training run: its settings, its learner, its metrics and its status."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

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

# A member has diverged if its FVU is above 100, where 1 is the error of predicting the mean, and
# above ten times its first FVU: dense codes of random directions start at 140 and more.
DIVERGED_FVU, DIVERGED_RATIO = 100.0, 10.0


class Member(nn.Module):
    """One SAE of a training run.

    A run may train several SAEs on the same activations. Each member has its own optimizer,
    schedule and metrics file, and stops on its own if it diverges.

    Args:
        name: Name in tables; also the name of its folder, if the run has several members.
        config: What it is, and how it is trained.
        folder: Folder of its `metrics.csv`.
        resume_step: Step from which the run resumes; later rows are dropped and written again.

    Attributes:
        learner: Its learner, set by the training module; None once it was stopped.
        stopped: Step, tokens and reason of its stop; None while it trains.
        last_metrics: Its last row of training metrics.
        held_out: Its last held-out metrics.
        density: Share of the held-out tokens on which each latent fires, float64 [d_sae].
    """

    def __init__(
        self, name: str, config: TrainConfig, folder: Path, *, resume_step: int | None = None
    ) -> None:
        super().__init__()
        self.name, self.config, self.folder = name, config, folder
        # None before training and after `stop`. The type leaves None out, because only members that
        # train are used.
        self.learner = cast(Learner, None)
        self.step = cast(Callable[..., None], None)
        self.stopped: dict[str, Any] | None = None
        self.last_metrics: dict[str, float] = {}
        self.held_out: dict[str, float] = {}
        self.first_fvu = 0.0
        self.metrics_csv = MetricsCSV(folder, resume_step=resume_step)

    @property
    def live(self) -> bool:
        """True until the member is stopped."""
        return self.stopped is None

    def start(self, first_block: dict[str, Tensor] | None) -> None:
        """Prepare the first step, or the first one after a resume.

        Args:
            first_block: Activations {hook: [n, width]} that set scales and biases of a new SAE.
        """
        learner = self.learner
        if learner.scale is None:
            assert first_block is not None
            learner.initialise(first_block)
        self.step = GraphedStep(learner) if self.config.cuda_graph else learner.step

    def pop_metrics(self) -> dict[str, float]:
        """Return the training metrics since the last call, and stop the member if it diverged.

        It diverged if its loss is not finite or its FVU is absurdly large. Waits for the device.
        """
        self.last_metrics = self.learner.pop_metrics()
        fvu = self.last_metrics["fvu"]
        # Dictionary learning without gradients has an objective in place of a loss.
        loss = self.last_metrics.get("loss", self.last_metrics.get("objective", fvu))
        self.first_fvu = self.first_fvu or fvu
        limit = max(DIVERGED_FVU, DIVERGED_RATIO * self.first_fvu)
        if not (math.isfinite(loss) and fvu < limit):
            self.stop(f"diverged: FVU {fvu:.3g}, loss {loss:.3g}")
        return self.last_metrics

    def stop(self, reason: str) -> None:
        """End the training of this member and free its learner; its rows stay."""
        learner = self.learner
        self.stopped = {"step": learner.steps, "tokens": learner.tokens, "reason": reason}
        self.learner = cast(Learner, None)
        self.step = cast(Callable[..., None], None)

    def error(self) -> UserError:
        """Return the error that ends a run in which no member is left."""
        assert self.stopped is not None
        lr = self.config.optim.lr
        rate = f"model.optim.lr={lr:g}" if lr else "the default learning rate"
        return UserError(
            f"{self.name} {self.stopped['reason']} at step {self.stopped['step']}, with {rate}; "
            "train with a lower model.optim.lr"
        )

    def start_validation(self, device: torch.device) -> None:
        """Prepare to measure held-out metrics."""
        learner = self.learner
        self._sae: SAE = learner.eval_model()
        self._fvu = HeldOutFVU(learner.sae.d_out, device)
        self._firing = Firing(learner.sae.d_sae, device)

    def validate_batch(self, acts: dict[str, Tensor]) -> None:
        """Add one batch of held-out activations {hook: [batch, width]} to the metrics."""
        y, y_hat, codes = self.learner.predict(acts, sae=self._sae)
        self._fvu.update(y, y_hat)
        self._firing.update(codes)

    def finish_validation(self) -> dict[str, float]:
        """Return the held-out metrics of the batches since `start_validation`."""
        self.held_out = {"held_out_fvu": self._fvu.compute(), "held_out_l0": self._firing.l0()}
        self.density = self._firing.density().cpu()
        del self._sae, self._fvu, self._firing
        return self.held_out

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the member besides its tensors."""
        return {
            "name": self.name,
            "stopped": self.stopped,
            "last_metrics": self.last_metrics,
            "first_fvu": self.first_fvu,
            "held_out": self.held_out,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Call it before the tensors are loaded, because a checkpoint has none of a stopped member.
        """
        self.last_metrics, self.held_out = state["last_metrics"], state["held_out"]
        self.first_fvu = state["first_fvu"]
        self.stopped = state["stopped"]
        if self.stopped is not None:
            self.learner = cast(Learner, None)
