"""One autoencoder being trained: the step, and all the state that a resumed run needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sae.autoencoder import SAE
from sae.autoencoder.init import geometric_median
from sae.autoencoder.losses import ForwardOutput, LossTerm, Run, total_variance
from sae.errors import UserError
from sae.training.dead_latents import DeadLatents
from sae.training.defaults import learning_rate
from sae.training.ema import WeightAverage
from sae.training.l0_controller import L0Controller
from sae.training.optim_config import OptimConfig
from sae.training.optimizers import optimizer_for
from sae.training.resample import COPIES, Resampler, restart_rows
from sae.training.running_means import RunningMeans
from sae.training.schedule_free import averaged
from sae_kernels.codes import Codes
from sae_kernels.decode_error import decode_error


def check_losses(sae: SAE, losses: Sequence[LossTerm]) -> None:
    """Raises UserError for terms that do not go with `sae`, or with each other."""
    for term in losses:
        term.check(sae)
    rule, penalties = type(sae.sparsity).__name__, [t for t in losses if t.penalty]
    if sae.sparsity.needs_penalty and not penalties:
        raise UserError(
            f"model.losses has no penalty, and nothing else keeps {rule} sparse; add L1, or L0"
        )
    controlled_term(losses)


def controlled_term(losses: Sequence[LossTerm]) -> int | None:
    """Which term's coefficient a controller sets; UserError where that would be several."""
    found = [n for n, term in enumerate(losses) if term.controlled]
    if len(found) > 1:
        raise UserError("model.losses has several terms with target_l0; one can be steered")
    return found[0] if found else None


def loss_columns(losses: Sequence[LossTerm]) -> tuple[str, ...]:
    """Return the name under which each term of the loss is logged: `loss_fvu`, `loss_auxk`, ...

    The logged value is the term times its coefficient, so the columns add up to `loss`. A second
    term of the same class is `loss_l1_2`.
    """
    names: list[str] = []
    for term in losses:
        name = f"loss_{type(term).__name__.lower()}"
        same = sum(type(term) is type(other) for other in losses[: len(names)])
        names.append(f"{name}_{same + 1}" if same else name)
    return tuple(names)


class Learner(nn.Module):
    """An SAE, its optimiser, its counters, and the step that changes them.

    The activations of each hook are multiplied by a factor of `scale`, estimated once so that
    E|x| = sqrt(width); the SAE itself lives in that unit until `export` folds the factors in.

    Args:
        sae: what is trained, in place.
        losses: terms of the loss.
        optim: learning rate and schedule.
        total_steps: length of the run, for the schedule.
        begins: steps of the run that come before the first of these; schedules are over the rest.
        dead_after: tokens without firing after which a latent is dead.
        refresh_steps: how often the list of dead latents is drawn up.
        resample_every: steps between two times that dead latents are resampled; None: never. Not
            while the learning rate falls at the end.
        seed: of that.
        ema: decay of an average of the weights, kept beside them; None: none.
        backend: of every kernel; `auto` except in tests.

    Raises UserError for a term that means nothing for this SAE, and for a sparsity rule that
    nothing in the losses keeps sparse.
    """

    METERS = ("steps", "loss", "squared_error", "variance", "l0")

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
        self.lr = self.rate = optim.lr or learning_rate(
            optim.name,
            sae.d_in,
            sae.d_sae,
            self.total_steps,
            needs_penalty=sae.sparsity.needs_penalty,
        )
        most = max((term.max_dead_latents(sae) for term in self.losses), default=0)
        self.dead = DeadLatents(
            sae.d_sae, dead_after=dead_after, refresh_steps=refresh_steps, most=most
        )
        self.resampler = None
        if resample_every is not None:
            last = (1 - optim.decay) * total_steps
            self.resampler = Resampler(sae.d_sae, every=resample_every, last=last, seed=seed)
        self.controlled_term = controlled_term(self.losses)
        self.controller = None
        if self.controlled_term is not None:
            term = self.losses[self.controlled_term]
            self.controller = L0Controller(
                term.target_l0,
                term.coefficient,
                first=max(term.target_l0, min(8 * term.target_l0, sae.d_sae / 4)),
                until=term.target_at,
                **term.controller_settings,
            )
        self.register_buffer("step_number", torch.zeros((), dtype=torch.int64), False)
        self.register_buffer("warm", torch.ones(len(self.losses), dtype=torch.float64), False)
        self.loss_names = loss_columns(self.losses)
        self.meter = RunningMeans((*self.METERS, *self.loss_names))
        self.steps = 0
        self.tokens = 0
        self.rule = sae.sparsity
        self.scale: dict[str, float] | None = None
        self.optimizer = optimizer_for(sae, optim, self.lr)
        if ema is not None and optim.name == "signum":
            raise UserError("model.ema: signum averages its weights itself; leave it out")
        self.average = None if ema is None else WeightAverage(sae, ema)

    @torch.no_grad()
    def initialise(self, acts: dict[str, Tensor]) -> None:
        """Set the scales, and biases by the geometric median, from a sample {hook: [n, width]}.

        b_dec becomes the median of what is predicted. Where that is not what is read, b_enc takes
        off the median of x instead.
        """
        sae, site = self.sae, self.sae.site
        self.scale = {}
        for hook in site.hooks:
            length = acts[hook].double().norm(dim=1).mean().item()
            if length == 0:
                raise UserError(
                    "the activations of the first block are all zero: nothing can be learnt from "
                    f"{hook}; choose another hook"
                )
            self.scale[hook] = math.sqrt(acts[hook].shape[1]) / length
        # Some 8,192 rows from all over the sample: the first ones are of a few documents only.
        rows = next(iter(acts.values()))
        some = slice(None, None, max(1, len(rows) // 8192))
        x, target = site.pair({h: acts[h][some].double() * self.scale[h] for h in site.hooks})
        sae.b_dec.copy_(geometric_median(target))
        if x is not target:
            centres = geometric_median(x).split(sae.d_in)
            for group, centre in zip(sae.groups(), centres, strict=True):
                sae.b_enc[group] = -(centre.to(sae.W_enc) @ sae.W_enc[:, group])

    def read_acts(self, acts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """x and y of a batch {hook: [batch, width]}, in the unit the SAE lives in."""
        dtype, site = self.sae.b_dec.dtype, self.sae.site
        return site.pair({h: acts[h].to(dtype) * self.scale[h] for h in site.hooks})

    def forward(
        self, acts: dict[str, Tensor], run: Run | None = None
    ) -> tuple[ForwardOutput, Tensor]:
        """Return codes, prediction and loss of a batch {hook: [batch, width]}, as in training."""
        forward = self.encode_decode(acts, run)
        return forward, sum(self.weighted_losses(forward))

    def encode_decode(self, acts: dict[str, Tensor], run: Run | None = None) -> ForwardOutput:
        """Return codes and prediction of a batch {hook: [batch, width]}, as in training."""
        x, y = self.read_acts(acts)
        encoded = self.sae.encode_training(x, backend=self.backend)
        target = y - self.sae.skip(x) if self.sae.site.skip else y
        residual, squared_error = decode_error(
            encoded.codes, self.sae.W_dec, self.sae.b_dec, target, backend=self.backend
        )
        return ForwardOutput(
            sae=self.sae,
            x=x,
            target=target,
            encoded=encoded,
            residual=residual,
            squared_error=squared_error,
            variance=total_variance(y),
            silent=self.dead.silent,
            is_dead=self.dead.is_dead(),
            step=self.step_number,
            backend=self.backend,
            run=run,
            scale=self.scale,
        )

    def weighted_losses(self, forward: ForwardOutput) -> list[Tensor]:
        """Return each term of the loss times its coefficient, in the order of `losses`."""
        weighted = []
        for number, term in enumerate(self.schedule()[1:]):
            value = term(forward)
            weight = term.coefficient
            if number == self.controlled_term:
                weight = self.controller.coefficient()
            if term.penalty:
                weight = weight * self.warm[number]
            weighted.append(weight * value)
        return weighted

    @torch.no_grad()
    def predict(
        self, acts: dict[str, Tensor], sae: SAE | None = None
    ) -> tuple[Tensor, Tensor, Codes]:
        """y, its prediction and the codes of a batch, by the rule that holds after training; `sae`
        is what `judged` gave, found anew when left out."""
        sae = self.judged() if sae is None else sae
        x, y = self.read_acts(acts)
        codes = sae.encode(x, backend=self.backend)
        return y, sae.decode(codes, x, backend=self.backend), codes

    def judged(self) -> SAE:
        """What is validated and exported: the SAE, or a copy with averages where the optimiser
        keeps such."""
        return averaged(self.sae, self.optimizer)

    def step(
        self,
        *micro: dict[str, Tensor],
        runs: Sequence[Run | None] | None = None,
    ) -> None:
        """Learn from one batch {hook: [batch, width]}, or from several of one size: the update is
        that of all of them together where losses are means over tokens. What a batch as a whole
        decides is decided in each: the variance in FVU and AuxK, which latents fire in BatchTopK.
        Never waits for the device, save where `DeadLatents` draws up its list.

        `runs` are the model's passes that gave the batches, for terms that need them.
        """
        self.update_schedules()
        self.device_step(micro, self.optimizer.step, runs)
        self.host_step(micro)

    def update_schedules(self) -> None:
        """What the schedules say for the coming step: learning rate, penalties, k; its number."""
        self.step_number.fill_(self.steps)
        done = self.steps - self.start_step
        self.rate = self.lr * self.optim.schedule(done, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["factor"]
        if self.average is not None:
            self.average.set_share(done)
        self.sae.sparsity = self.rule.at_progress(done / self.total_steps)
        if self.controller is not None:
            self.controller.aim(done / self.total_steps)
        for number, term in enumerate(self.losses):
            if term.penalty and done <= term.warmup * self.total_steps:
                rise = (done + 1) / max(term.warmup * self.total_steps, 1)
                self.warm[number].fill_(min(rise, 1.0))

    def schedule(self) -> tuple:
        """The rule and the terms of the coming step: what a recorded step cannot change."""
        progress = (self.steps - self.start_step) / self.total_steps
        return (self.sae.sparsity, *(term.at_progress(progress) for term in self.losses))

    def device_step(
        self,
        micro: Sequence[dict[str, Tensor]],
        update: Callable[[], Any],
        runs: Sequence[Run | None] | None = None,
    ) -> None:
        """What a step does with tensors: all of it can be recorded as one CUDA graph."""
        done, losses, terms = [], [], []
        for acts, run in zip(micro, runs or [None] * len(micro), strict=True):
            forward = self.encode_decode(acts, run)
            weighted = self.weighted_losses(forward)
            loss = sum(weighted)
            loss = loss / len(micro) if len(micro) > 1 else loss
            loss.backward()
            done.append(forward)
            losses.append(loss.detach())
            terms.append([term.detach() / len(micro) for term in weighted])
        update()
        self.optimizer.zero_grad(set_to_none=True)
        self.sae.mask_decoder()
        for kind, copied in self.optimizer.state.get(self.sae.W_dec, {}).items():
            if kind in COPIES:
                self.sae.mask_decoder(copied)
        for forward in done:
            self.sae.post_step(forward.encoded)
        if self.average is not None:
            self.average.update(self.sae)
        fired = self.dead.count(*(forward.codes for forward in done))
        if self.resampler is not None:
            self.resampler.count(fired)
        l0 = sum(forward.codes.l0().double().mean() for forward in done) / len(done)
        if self.controller is not None:
            self.controller.update(l0)
            self._raise_bar(self.controller.rise())
        self.meter.add(
            steps=torch.ones_like(l0),
            loss=sum(losses),
            squared_error=sum(forward.squared_error.detach() for forward in done),
            variance=sum(forward.variance for forward in done),
            l0=l0,
            **{name: sum(values) for name, *values in zip(self.loss_names, *terms, strict=True)},
        )

    def _raise_bar(self, by: Tensor) -> None:
        name, sign = self.rule.threshold_param
        param = getattr(self.sae, name)
        state = self.optimizer.state.get(param, {})
        for tensor in (param.data, *(state[kind] for kind in COPIES if kind in state)):
            tensor += sign * by.to(tensor.dtype)

    def host_step(self, micro: Sequence[dict[str, Tensor]]) -> None:
        """What a step counts in Python, and what happens every so many steps and waits for the
        device: the list of dead latents, resampling."""
        self.steps += 1
        self.tokens += sum(len(next(iter(acts.values()))) for acts in micro)
        self.dead.refresh(self.steps)
        if self.resampler is not None and self.resampler.due(self.steps):
            self.resample({hook: torch.cat([acts[hook] for acts in micro]) for hook in micro[0]})

    @torch.no_grad()
    def resample(self, acts: dict[str, Tensor]) -> None:
        """Start dead latents anew, by the batch {hook: [batch, width]}."""
        sae, state = self.sae, self.optimizer.state
        x, y = self.read_acts(acts)
        encoded = sae.encode_training(x, backend=self.backend)
        residual = y - sae.decode(encoded.codes, x, backend=self.backend)
        silent_for, dead_after = self.dead.tokens_since_fired, self.dead.dead_after
        latents, new = self.resampler(sae, x, residual, silent_for, dead_after, self.steps)
        for name, rows in new.items():
            restart_rows(state.get(getattr(sae, name), {}), name, latents, rows)
        if self.average is not None:
            self.average.restart(latents, new)

    def read(self) -> dict[str, float]:
        """Averages since the last call. Waits for the device, so call it on log steps only."""
        sums = self.meter.read()
        steps = max(sums["steps"], 1.0)
        return {
            "loss": sums["loss"] / steps,
            **{name: sums[name] / steps for name in self.loss_names},
            "fvu": sums["squared_error"] / sums["variance"] if sums["variance"] else math.nan,
            "l0": sums["l0"] / steps,
            "dead_fraction": self.dead.dead_fraction().item(),
            "lr": self.rate,
            **self._steered(),
            **(self.resampler.read() if self.resampler is not None else {}),
        }

    def _steered(self) -> dict[str, float]:
        if self.controller is None:
            return {}
        return {"penalty_coefficient": self.controller.coefficient().item()}

    def export(self, *, ema: bool = False) -> SAE:
        """The SAE for raw activations: a copy with the scales folded in; with `ema`, the average of
        the weights."""
        self.sae.sparsity = self.rule.at_progress(1.0)
        (factor, *others) = set(self.scale.values())
        sae = self.average.averaged(self.sae) if ema else self.judged()
        return sae.fold_scale(self.scale if others else factor)

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "tokens": self.tokens, "scale": self.scale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.tokens, self.scale = state["steps"], state["tokens"], state["scale"]
        # The k of the last step, until the next one: `predict` is asked in between.
        self.sae.sparsity = self.rule.at_progress(
            max(self.steps - self.start_step - 1, 0) / self.total_steps
        )
