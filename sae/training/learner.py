"""One autoencoder being trained: the step, and all the state that a resumed run needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sae.autoencoder import SAE
from sae.autoencoder.init import geometric_median
from sae.autoencoder.objective import AuxK, Forward, Term, spread
from sae.errors import UserError
from sae.training.dead import DeadLatents
from sae.training.meter import Meter
from sae.training.optim import RowAdam
from sae.training.schedule import warmup_decay


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its schedule.

    Args:
        lr: learning rate; left out, `lr_scale / sqrt(d_sae / 2**14)`.
        lr_scale: the learning rate of an SAE of 16,384 latents (2e-4 in Gao et al. 2024).
        betas: decay rates of Adam's two moments.
        eps: added to Adam's denominator.
        moments: dtype in which Adam keeps its moments; bfloat16 takes half the memory.
        clip_norm: the most that the norm of the gradient may be, over all parameters; none when
            left out.
        warmup: share of the run over which the learning rate rises.
        decay: share of the run, at its end, over which it falls to zero.
    """

    lr: float | None = None
    lr_scale: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    moments: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float | None = None
    warmup: float = 0.05
    decay: float = 0.2

    def __post_init__(self) -> None:
        for name in ("lr", "lr_scale", "eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"model.optim.{name}={value} must be a positive number")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"model.optim.{name}={getattr(self, name)} is a share of the run: from 0 to 1"
                )

    def learning_rate(self, d_sae: int) -> float:
        return self.lr if self.lr is not None else self.lr_scale / math.sqrt(d_sae / 2**14)


class Learner(nn.Module):
    """An SAE, its optimiser, its counters, and the step that changes them.

    Activations are multiplied by `scale`, estimated once so that E|x| = sqrt(d_in); the SAE itself
    lives in that unit until `export` folds the factor in.

    Args:
        sae: what is trained, in place.
        objective: terms of the loss.
        optim: learning rate and schedule.
        total_steps: length of the run, for the schedule.
        dead_after: tokens without firing after which a latent is dead.
        refresh_steps: how often the list of dead latents is drawn up.
    """

    METERS = ("steps", "loss", "squared_error", "variance", "l0")

    def __init__(
        self,
        sae: SAE,
        objective: Sequence[Term],
        optim: OptimConfig,
        *,
        total_steps: int,
        dead_after: int,
        refresh_steps: int = 50,
    ) -> None:
        super().__init__()
        self.sae = sae
        self.objective = list(objective)
        self.total_steps = total_steps
        self.optim = optim
        self.lr = optim.learning_rate(sae.d_sae)
        k_aux = max((t.k_aux or sae.d_in // 2 for t in objective if isinstance(t, AuxK)), default=0)
        # 16 k_aux columns bound AuxK's dense product; the rest wait their turn.
        self.dead = DeadLatents(
            sae.d_sae, dead_after=dead_after, refresh_steps=refresh_steps, most=16 * max(1, k_aux)
        )
        self.meter = Meter(self.METERS)
        self.steps = 0
        self.tokens = 0
        self.scale: float | None = None
        self.optimizer = RowAdam(
            [
                {"params": [sae.W_enc, sae.b_enc, sae.b_dec]},
                {"params": [sae.W_dec], "unit_norm": True},
            ],
            lr=self.lr,
            betas=optim.betas,
            eps=optim.eps,
            moments=torch.bfloat16 if optim.moments == "bfloat16" else None,
            clip_norm=optim.clip_norm,
        )

    @torch.no_grad()
    def initialise(self, acts: dict[str, Tensor]) -> None:
        """Set the scale, and b_dec to the geometric median, from a sample {hook: [n, width]}."""
        x, target = self.sae.site.pair(acts)
        length = x.double().norm(dim=1).mean().item()
        if length == 0:
            raise UserError(
                "the activations of the first block are all zero: nothing can be learnt from "
                f"{', '.join(self.sae.site.hooks)}; choose another hook"
            )
        self.scale = math.sqrt(x.shape[1]) / length
        # Some 8,192 rows from all over the sample: the first ones are of a few documents only.
        spread = target[:: max(1, len(target) // 8192)]
        self.sae.b_dec.copy_(geometric_median(spread.double() * self.scale))

    def forward(self, acts: dict[str, Tensor]) -> tuple[Forward, Tensor]:
        """Codes, prediction and loss of a batch {hook: [batch, width]}."""
        x, target = self.sae.site.pair(acts)
        x = x.to(self.sae.b_dec.dtype) * self.scale
        target = x if target is x else target.to(x.dtype) * self.scale
        codes = self.sae.encode(x)
        residual, squared_error = self.sae.decode_error(codes, target)
        forward = Forward(
            sae=self.sae,
            x=x,
            target=target,
            codes=codes,
            residual=residual,
            squared_error=squared_error,
            variance=spread(target),
            silent=self.dead.silent,
            is_dead=self.dead.is_dead(),
        )
        loss = sum(term.coefficient * term(forward) for term in self.objective)
        return forward, loss

    def step(
        self,
        acts: dict[str, Tensor],
        *,
        update: Callable[[], Any] | None = None,
    ) -> None:
        """Learn from one batch {hook: [batch, width]}. Never waits for the device, save where
        `DeadLatents` draws up its list.

        `update` lets a trainer put its own call in place of the optimiser's.
        """
        self.set_rate()
        self.on_device(acts, update or self.optimizer.step)
        self.on_host(len(next(iter(acts.values()))))

    def set_rate(self) -> None:
        """The schedule's learning rate for the coming step."""
        warmup, decay = self.optim.warmup, self.optim.decay
        factor = warmup_decay(self.steps, self.total_steps, warmup=warmup, decay=decay)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor

    def on_device(self, acts: dict[str, Tensor], update: Callable[[], Any]) -> None:
        """What a step does with tensors: all of it can be recorded as one CUDA graph."""
        forward, loss = self.forward(acts)
        loss.backward()
        update()
        self.optimizer.zero_grad(set_to_none=True)
        self.dead.count(forward.codes)
        self.meter.add(
            steps=torch.ones_like(loss),
            loss=loss.detach(),
            squared_error=forward.squared_error.detach(),
            variance=forward.variance,
            l0=forward.codes.l0().double().mean(),
        )

    def on_host(self, batch: int) -> None:
        """What a step counts in Python; every `refresh_steps` it waits for the device."""
        self.steps += 1
        self.tokens += batch
        self.dead.refresh(self.steps)

    def read(self) -> dict[str, float]:
        """Averages since the last call. Waits for the device, so call it on log steps only."""
        sums = self.meter.read()
        steps = max(sums["steps"], 1.0)
        return {
            "loss": sums["loss"] / steps,
            "fvu": sums["squared_error"] / sums["variance"] if sums["variance"] else math.nan,
            "l0": sums["l0"] / steps,
            "dead_fraction": self.dead.dead_fraction().item(),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def export(self) -> SAE:
        """The SAE for raw activations: a copy with the scale folded in."""
        return self.sae.folded(self.scale)

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "tokens": self.tokens, "scale": self.scale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.tokens, self.scale = state["steps"], state["tokens"], state["scale"]
