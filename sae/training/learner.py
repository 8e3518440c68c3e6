"""One SAE in training: what it is built from, and all the state that a resumed run needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.autoencoder.init import center_and_scale
from sae.autoencoder.losses import ForwardOutput, LossTerm, ModelPass
from sae.errors import UserError
from sae.training.defaults import learning_rate
from sae.training.ema import WeightAverage
from sae.training.l0_controller import L0Controller
from sae.training.optim_config import OptimConfig
from sae.training.optimizers import build_optimizer
from sae.training.resample import Resampler, restart_rows
from sae.training.schedule_free import averaged
from sae.training.step import DeadLatents, RunningMeans, TrainStep, add_all
from sae_kernels.codes import Codes


class Learner(TrainStep):
    """An SAE, its optimizer and its counters; `step` trains it on a batch.

    The SAE is trained on `scale * activation + shift`, with one `scale` and `shift` for each hook.
    They are estimated once, so that the center of the activations becomes 0 and their mean distance
    to it sqrt(width). `export` folds both into the weights.

    Args:
        sae: The SAE, trained in place.
        losses: Terms of the loss.
        optim: Optimizer, learning rate and schedule.
        total_steps: Length of the run in steps.
        start_step: Steps of the run that were taken before the first of these; the schedules cover
            the rest.
        dead_after: Tokens without firing after which a latent is dead.
        refresh_steps: Steps between two lists of dead latents.
        resample_every: Steps between two resamplings of dead latents; None for never. None happens
            while the learning rate falls at the end.
        seed: Seed for resampling.
        ema: Decay of a moving average of the weights, kept beside them; None for no average.
        backend: Backend of every kernel; `auto` except in tests.

    Raises:
        UserError: A loss term does not apply to this SAE, or nothing keeps its sparsity rule
            sparse.
    """

    METRICS = ("steps", "loss", "squared_error", "variance", "l0")

    def __init__(
        self,
        sae: SAE,
        losses: Sequence[LossTerm],
        optim: OptimConfig,
        *,
        total_steps: int,
        start_step: int = 0,
        dead_after: int,
        refresh_steps: int = 50,
        resample_every: int | None = None,
        seed: int = 0,
        ema: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.sae = sae
        self.sae.unit_norm = optim.unit_norm
        self.losses = list(losses)
        check_losses(sae, self.losses)
        self.start_step, self.total_steps = start_step, total_steps - start_step
        self.optim, self.backend = optim, backend
        self.lr = self.current_lr = optim.lr or learning_rate(
            optim.name,
            sae.d_in,
            sae.d_sae,
            self.total_steps,
            needs_penalty=sae.sparsity.needs_penalty,
        )
        max_listed = max((term.max_dead_latents(sae) for term in self.losses), default=0)
        self.dead = DeadLatents(
            sae.d_sae, dead_after=dead_after, refresh_steps=refresh_steps, max_listed=max_listed
        )
        self.resampler = None
        if resample_every is not None:
            last = (1 - optim.decay) * total_steps
            self.resampler = Resampler(sae.d_sae, every=resample_every, last=last, seed=seed)
        self.controlled_term = controlled_term(self.losses)
        self.controller = None
        if self.controlled_term is not None:
            term = self.losses[self.controlled_term]
            target = term.target_l0
            assert target is not None
            self.controller = L0Controller(
                target,
                term.coefficient,
                first=max(target, min(8 * target, sae.d_sae / 4)),
                until=term.target_at,
                **term.controller_settings,
            )
        self.register_buffer("step_number", torch.zeros((), dtype=torch.int64), False)
        weights = torch.ones(len(self.losses), dtype=torch.float64)
        self.register_buffer("warmup_weights", weights, False)
        self.loss_names = loss_columns(self.losses)
        self.running_means = RunningMeans((*self.METRICS, *self.loss_names))
        self.steps = 0
        self.tokens = 0
        self.rule = sae.sparsity
        self.scale = None
        # A buffer that `get_extra_state` saves, because checkpoints from before it have none.
        self.register_buffer("shift", None, persistent=False)
        self.shift_widths = []
        self.optimizer = build_optimizer(sae, optim, self.lr)
        if ema is not None and optim.name == "signum":
            raise UserError("model.ema: signum averages its weights itself; leave model.ema out")
        self.average = None if ema is None else WeightAverage(sae, ema)

    @torch.no_grad()
    def initialise(self, acts: dict[str, Tensor], *, center: bool = True) -> None:
        """Set the scales and shifts from sample activations {hook: [n, width]}.

        The center of the activations is their geometric median. All biases start at 0, so the
        prediction of no latent is the center.

        Args:
            acts: The sample.
            center: False leaves the activations where they are, and scales them to a mean norm of
                sqrt(width).

        Raises:
            UserError: All activations of a hook are zero, or all that are predicted are the same.
        """
        self.scale, shifts = {}, {}
        for hook in self.sae.site.hooks:
            middle, scale = center_and_scale(acts[hook], center=center)
            if math.isinf(scale):
                raise UserError(
                    "the activations of the first block are all zero, so nothing can be learned "
                    f"from {hook}; choose another hook"
                )
            self.scale[hook], shifts[hook] = scale, -scale * middle
        predicted = self.sae.site.predicts
        if all(_is_constant(acts[hook]) for hook in predicted):
            raise UserError(
                f"all rows of the first block of {', '.join(predicted)} are the same, so FVU, "
                "which divides by their variance, does not exist; give activations that vary, or "
                "choose another hook"
            )
        self.set_shifts(shifts if center else None)

    def forward(
        self, acts: dict[str, Tensor], model_pass: ModelPass | None = None
    ) -> tuple[ForwardOutput, Tensor]:
        """Return codes and prediction, and the loss, of a batch {hook: [batch, width]}."""
        output = self.encode_decode(acts, model_pass)
        return output, add_all(self.loss_terms(output))

    @torch.no_grad()
    def predict(
        self, acts: dict[str, Tensor], sae: SAE | None = None
    ) -> tuple[Tensor, Tensor, Codes]:
        """Return y, its prediction and the codes of a batch, by the rule that holds after training.

        Args:
            acts: Activations {hook: [batch, width]}.
            sae: What `eval_model` returned, to save making it for every batch.
        """
        sae = self.eval_model() if sae is None else sae
        x, y = self.scaled_pair(acts)
        codes = sae.encode(x, backend=self.backend)
        return y, sae.decode(codes, x, backend=self.backend), codes

    def eval_model(self) -> SAE:
        """Return the SAE to validate and export: `sae`, or a copy with averaged weights if the
        optimizer averages them."""
        return averaged(self.sae, self.optimizer)

    @torch.no_grad()
    def resample(self, acts: dict[str, Tensor]) -> None:
        assert self.resampler is not None
        sae, state = self.sae, self.optimizer.state
        x, y = self.scaled_pair(acts)
        encoded = sae.encode_training(x, backend=self.backend)
        residual = y - sae.decode(encoded.codes, x, backend=self.backend)
        silent_for, dead_after = self.dead.tokens_since_fired, self.dead.dead_after
        latents, new = self.resampler(sae, x, residual, silent_for, dead_after, self.steps)
        for name, rows in new.items():
            restart_rows(state.get(getattr(sae, name), {}), name, latents, rows)
        if self.average is not None:
            self.average.restart(latents, new)

    def pop_metrics(self) -> dict[str, float]:
        """Return the training metrics, averaged over the steps since the last call.

        The columns `loss_*` are the terms of the loss times their weights; they add up to `loss`.
        This waits for the device, so call it on log steps only.
        """
        sums = self.running_means.pop()
        steps = max(sums["steps"], 1.0)
        metrics = {
            "loss": sums["loss"] / steps,
            **{name: sums[name] / steps for name in self.loss_names},
            "fvu": sums["squared_error"] / sums["variance"] if sums["variance"] else math.nan,
            "l0": sums["l0"] / steps,
            "dead_fraction": self.dead.dead_fraction().item(),
            "lr": self.current_lr,
        }
        if self.controller is not None:
            metrics["penalty_coefficient"] = self.controller.coefficient().item()
        if self.resampler is not None:
            metrics |= self.resampler.counts()
        return metrics

    def export(self, *, ema: bool = False) -> SAE:
        """Return a copy of the SAE that takes raw activations, with scales and shifts folded in.

        Args:
            ema: Use the moving average of the weights.
        """
        assert self.scale is not None
        self.sae.sparsity = self.rule.at_progress(1.0)
        (factor, *others) = set(self.scale.values())
        if ema:
            assert self.average is not None
            sae = self.average.averaged(self.sae)
        else:
            sae = self.eval_model()
        return sae.fold_scale(self.scale if others else factor, self.shifts())

    def get_extra_state(self) -> dict[str, Any]:
        state = {"steps": self.steps, "tokens": self.tokens, "scale": self.scale}
        return state | {"shift": self.shifts()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.tokens, self.scale = state["steps"], state["tokens"], state["scale"]
        self.set_shifts(state.get("shift"))  # absent from checkpoints of older versions
        # Use the k of the last step until the next one, because `predict` may be called in between.
        self.sae.sparsity = self.rule.at_progress(
            max(self.steps - self.start_step - 1, 0) / self.total_steps
        )


def check_losses(sae: SAE, losses: Sequence[LossTerm]) -> None:
    """Raise UserError if a loss term does not apply to `sae`, or if nothing keeps it sparse."""
    for term in losses:
        term.check(sae)
    if sae.sparsity.needs_penalty and not any(term.penalty for term in losses):
        raise UserError(
            "model.losses has no penalty, and nothing else keeps "
            f"{type(sae.sparsity).__name__} sparse; add L1, or L0"
        )
    controlled_term(losses)


def controlled_term(losses: Sequence[LossTerm]) -> int | None:
    """Return the index of the term whose coefficient is controlled to reach `target_l0`.

    Returns None if no term has a target. Raises UserError if several do, because the controller
    can adjust only one coefficient.
    """
    indices = [n for n, term in enumerate(losses) if term.controlled]
    if len(indices) > 1:
        raise UserError(
            "model.losses has several terms with target_l0, but only one coefficient can be "
            "controlled; leave target_l0 out of the others"
        )
    return indices[0] if indices else None


def loss_columns(losses: Sequence[LossTerm]) -> tuple[str, ...]:
    """Return the name under which each loss term is logged: `loss_fvu`, `loss_auxk`, ...

    A second term of the same class is `loss_l1_2`.
    """
    names: list[str] = []
    for term in losses:
        name = f"loss_{type(term).__name__.lower()}"
        same = sum(type(term) is type(other) for other in losses[: len(names)])
        names.append(f"{name}_{same + 1}" if same else name)
    return tuple(names)


def _is_constant(acts: Tensor) -> bool:
    """Return whether several rows are all the same; most samples are decided by a few rows."""
    if len(acts) < 2 or not bool((acts[:64] == acts[0]).all()):
        return False
    return bool((acts == acts[0]).all())
