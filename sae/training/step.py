"""The training step: `TrainStep.step`, and the counters that it updates.

One step is `update_schedules` (host), `device_step` (every tensor operation) and `host_step` (what
happens every so many steps). `docs/explanation/one-step.md` follows a step through all files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sae.autoencoder import SAE
from sae.autoencoder.losses import ForwardOutput, LossTerm, ModelPass, total_variance
from sae.autoencoder.sparsity import Sparsity
from sae.errors import UserError
from sae.training.ema import WeightAverage
from sae.training.l0_controller import L0Controller
from sae.training.optim_config import OptimConfig
from sae.training.resample import PARAM_COPIES, Resampler
from sae_kernels.codes import Codes
from sae_kernels.decode_error import decode_error


class TrainStep(nn.Module):
    """The step of `Learner`, which builds everything that is declared here."""

    sae: SAE
    losses: list[LossTerm]
    optim: OptimConfig
    optimizer: torch.optim.Optimizer
    controller: L0Controller | None
    controlled_term: int | None
    average: WeightAverage | None
    resampler: Resampler | None
    dead: DeadLatents
    running_means: RunningMeans
    rule: Sparsity
    scale: dict[str, float] | None
    shift: Tensor | None
    shift_widths: list[int]
    loss_names: tuple[str, ...]
    step_number: Tensor
    warmup_weights: Tensor
    steps: int
    tokens: int
    start_step: int
    total_steps: int
    lr: float
    current_lr: float
    backend: str

    def step(
        self,
        *micro_batches: dict[str, Tensor],
        model_passes: Sequence[ModelPass | None] | None = None,
    ) -> None:
        """Update the SAE from one batch, or from several micro-batches of the same size.

        The update from micro-batches equals that of one large batch where the losses are means
        over tokens. Decisions about a whole batch are made in each micro-batch: the variance in FVU
        and AuxK, and which latents fire in BatchTopK. The step never waits for the device, except
        where `DeadLatents.refresh` or resampling is due.

        Args:
            micro_batches: Activations {hook: [batch, width]}, as the model gives them.
            model_passes: The forward pass of the model that gave each micro-batch, for terms that
                run the model again.
        """
        self.update_schedules()
        self.device_step(micro_batches, self.optimizer.step, model_passes)
        self.host_step(micro_batches)

    def update_schedules(self) -> None:
        """Set the learning rate, k and penalty weights of the next step by their schedules."""
        self.step_number.fill_(self.steps)
        done = self.steps - self.start_step
        progress = done / self.total_steps
        self.current_lr = self.lr * self.optim.schedule(done, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.current_lr * group["factor"]
        if self.average is not None:
            self.average.set_share(done)
        self.sae.sparsity = self.rule.at_progress(progress)
        if self.controller is not None:
            self.controller.set_target(progress)
        for number, term in enumerate(self.losses):
            if term.penalty and done <= term.warmup * self.total_steps:
                risen = (done + 1) / max(term.warmup * self.total_steps, 1)
                self.warmup_weights[number].fill_(min(risen, 1.0))

    def device_step(
        self,
        micro_batches: Sequence[dict[str, Tensor]],
        update: Callable[[], Any],
        model_passes: Sequence[ModelPass | None] | None = None,
    ) -> None:
        """Run every tensor operation of a step; all of them can be recorded as one CUDA graph."""
        count = len(micro_batches)
        outputs, losses, terms = [], [], []
        for acts, model_pass in zip(micro_batches, model_passes or [None] * count, strict=True):
            output = self.encode_decode(acts, model_pass)
            weighted = self.loss_terms(output)
            loss = add_all(weighted) / count if count > 1 else add_all(weighted)
            if not loss.requires_grad:
                names = ", ".join(type(term).__name__ for term in self.losses)
                raise UserError(
                    f"model.losses={names} gives no gradient to learn from; add FVU or MSE"
                )
            loss.backward()
            outputs.append(output)
            losses.append(loss.detach())
            terms.append([term.detach() / count for term in weighted])
        update()
        self.optimizer.zero_grad(set_to_none=True)
        self.restrict_weights()
        for output in outputs:
            self.sae.post_step(output.encoded)
        if self.average is not None:
            self.average.update(self.sae)
        fired = self.dead.count(*(output.codes for output in outputs))
        if self.resampler is not None:
            self.resampler.count(fired)
        l0 = add_all(output.codes.l0().double().mean() for output in outputs) / count
        if self.controller is not None:
            self.controller.update(l0)
            self.raise_threshold(self.controller.threshold_rise())
        self.running_means.add(
            steps=torch.ones_like(l0),
            loss=sum(losses),
            squared_error=sum(output.squared_error.detach() for output in outputs),
            variance=sum(output.variance for output in outputs),
            l0=l0,
            **{name: sum(values) for name, *values in zip(self.loss_names, *terms, strict=True)},
        )

    def host_step(self, micro_batches: Sequence[dict[str, Tensor]]) -> None:
        """Count the step, and do what is due every so many steps and waits for the device: list
        the dead latents, and resample them."""
        self.steps += 1
        self.tokens += sum(len(next(iter(acts.values()))) for acts in micro_batches)
        self.dead.refresh(self.steps)
        if self.resampler is not None and self.resampler.due(self.steps):
            hooks = micro_batches[0]
            self.resample({h: torch.cat([acts[h] for acts in micro_batches]) for h in hooks})

    def scaled_pair(self, acts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the SAE reads and what it predicts, x [batch, d_in] and y [batch, d_out], of
        activations {hook: [batch, width]}, scaled and shifted as the SAE is trained on them."""
        assert self.scale is not None
        dtype, site, shifts = self.sae.b_dec.dtype, self.sae.site, self.shifts()
        if shifts is None:
            return site.pair({h: acts[h].to(dtype) * self.scale[h] for h in site.hooks})
        # One pass, at least in float32: 16-bit activations would lose digits in the sum.
        moved = {h: torch.add(shifts[h], acts[h], alpha=self.scale[h]) for h in site.hooks}
        return site.pair({h: x.to(dtype) for h, x in moved.items()})

    def shifts(self) -> dict[str, Tensor] | None:
        """Return what is added to the scaled activations of each hook, {hook: [width]}.

        None if nothing is added.
        """
        if self.shift is None:
            return None
        return dict(zip(self.sae.site.hooks, self.shift.split(self.shift_widths), strict=True))

    def set_shifts(self, shifts: Mapping[str, Tensor] | None) -> None:
        """Set what `shifts` returns, on the device of the SAE and at least in float32."""
        if shifts is None:
            self.shift = None
            return
        b_dec, parts = self.sae.b_dec, [shifts[hook] for hook in self.sae.site.hooks]
        wide = torch.promote_types(b_dec.dtype, torch.float32)
        self.shift_widths = [len(part) for part in parts]
        self.shift = torch.cat(parts).to(b_dec.device, wide)

    def encode_decode(
        self, acts: dict[str, Tensor], model_pass: ModelPass | None = None
    ) -> ForwardOutput:
        """Return codes and prediction of a batch {hook: [batch, width]}, as used in training."""
        x, y = self.scaled_pair(acts)
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
            dead_list=self.dead.dead_list,
            still_dead=self.dead.still_dead(),
            step=self.step_number,
            backend=self.backend,
            model_pass=model_pass,
            scale=self.scale,
            shift=self.shifts(),
        )

    def loss_terms(self, output: ForwardOutput) -> list[Tensor]:
        """Return each term of the loss times its weight, in the order of `losses`: scalars."""
        weighted = []
        for number, term in enumerate(self.scheduled()[1:]):
            weight = term.coefficient
            if self.controller is not None and number == self.controlled_term:
                weight = self.controller.coefficient()
            if term.penalty:
                weight = weight * self.warmup_weights[number]
            weighted.append(weight * term(output))
        return weighted

    def scheduled(self) -> tuple:
        """Return the sparsity rule and the loss terms as they are in the coming step.

        These are Python objects, so a step recorded as a CUDA graph cannot change them.
        """
        progress = (self.steps - self.start_step) / self.total_steps
        return (self.sae.sparsity, *(term.at_progress(progress) for term in self.losses))

    def restrict_weights(self) -> None:
        """Set to zero what groups of latents must not write, also in the optimizer's copies."""
        self.sae.mask_decoder()
        for name, tensor in self.optimizer.state.get(self.sae.W_dec, {}).items():
            if name in PARAM_COPIES:
                self.sae.mask_decoder(tensor)

    def raise_threshold(self, amount: Tensor) -> None:
        """Raise every latent's firing threshold by `amount`, in the optimizer's copies too."""
        name, sign = self.rule.threshold_param
        param = getattr(self.sae, name)
        state = self.optimizer.state.get(param, {})
        for tensor in (param.data, *(state[kind] for kind in PARAM_COPIES if kind in state)):
            tensor += sign * amount.to(tensor.dtype)

    def resample(self, acts: dict[str, Tensor]) -> None:
        """Restart the dead latents from a batch {hook: [batch, width]}."""
        raise NotImplementedError


def add_all(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more tensors."""
    return cast(Tensor, sum(values))


class DeadLatents(nn.Module):
    """Tokens since each latent last fired, and the list of latents that are dead.

    A latent is dead if it fired on none of the last `dead_after` tokens. AuxK and PreActs work on
    the list of dead latents. It is made every `refresh_steps` steps only, because the host must
    know its length, and asking the device for it waits. In between, `still_dead` tells which
    latents of the list have fired again.

    Args:
        d_sae: Number of latents.
        dead_after: Tokens without firing after which a latent is dead.
        refresh_steps: Steps between two lists.
        max_listed: Greatest length of the list. If more latents are dead, it has those that have
            not fired for longest.

    Attributes:
        dead_list: The list, ascending, int64.
    """

    tokens_since_fired: Tensor
    dead_list: Tensor

    def __init__(self, d_sae: int, *, dead_after: int, refresh_steps: int, max_listed: int) -> None:
        super().__init__()
        self.dead_after, self.refresh_steps = dead_after, refresh_steps
        self.max_listed = max_listed
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("dead_list", torch.zeros(0, dtype=torch.int64))

    def still_dead(self) -> Tensor:
        """Return which latents of `dead_list` are dead now: bool, as long as `dead_list`."""
        return self.tokens_since_fired[self.dead_list] >= self.dead_after

    def dead_fraction(self) -> Tensor:
        """Return the share of all latents that are dead now: a scalar on the device."""
        return (self.tokens_since_fired >= self.dead_after).float().mean()

    @torch.no_grad()
    def count(self, *codes: Codes) -> Tensor:
        """Count the codes of one step's batches; return which latents fired, bool [d_sae]."""
        fired = torch.stack([batch.fired() for batch in codes]).any(0)
        self.tokens_since_fired += sum(batch.batch for batch in codes)
        self.tokens_since_fired.masked_fill_(fired, 0)
        return fired

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Update the list if that is due after `step` steps; then this waits for the device."""
        if step % self.refresh_steps:
            return
        dead = (self.tokens_since_fired >= self.dead_after).nonzero().squeeze(1)
        if len(dead) > self.max_listed:
            age = self.tokens_since_fired[dead]
            oldest = age.argsort(descending=True, stable=True)[: self.max_listed]
            dead = dead[oldest.sort().values]
        self.dead_list = dead

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        saved = state_dict.get(prefix + "dead_list")
        if saved is not None:  # its length varies, which nn.Module takes for a wrong shape
            self.dead_list = torch.zeros_like(saved, device=self.dead_list.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class RunningMeans(nn.Module):
    """Sums of named scalars over the steps since the last log, kept on the device.

    They are part of the state, so a run that is resumed between two log steps logs the same row.
    """

    sums: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.register_buffer("sums", torch.zeros(len(names), dtype=torch.float64))

    @torch.no_grad()
    def add(self, **values: Tensor | float) -> None:
        """Add the values of one step, all of `names` in their order. Never waits for the device."""
        assert tuple(values) == self.names
        row = [
            torch.as_tensor(value, device=self.sums.device).double() for value in values.values()
        ]
        self.sums += torch.stack(row)

    def pop(self) -> dict[str, float]:
        """Return the sums and set them to zero. Waits for the device."""
        sums = dict(zip(self.names, self.sums.tolist(), strict=True))
        self.sums.zero_()
        return sums

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        saved = state_dict.get(prefix + "sums")
        if saved is not None and len(saved) < len(self.names):
            # Written before each loss term was logged: the new sums are unknown until the next log.
            unknown = saved.new_full((len(self.names) - len(saved),), math.nan)
            state_dict[prefix + "sums"] = torch.cat([saved, unknown])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
