"""A penalty's coefficient, steered so that the run ends with a wanted L0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class L0Controller(nn.Module):
    """Proportional and integral control of the logarithm of a coefficient.

    With e the logarithm of L0 over its target, smoothed over some 20 steps and cut to +-1, the
    coefficient is exp(I + GAIN e), and I grows by RATE e a step. Everything stays on the device.

    What is aimed at falls from `first` to the target: a dictionary that may use more latents while
    it is learnt is a better one (MCC .86 -> .95 for JumpReLU, .53 -> .95 for L1, on the data of
    `benchmarks.recovery`).

    In the last fifth of the run, once the target is what is aimed at, the bar that pre-activations
    must pass moves as well, by TRIM e a step, with e not smoothed: all latents alike, in a unit in
    which pre-activations are about 1. L0 answers to the coefficient over hundreds of steps, and
    ended up to 30% off; to the bar it answers at once.

    Args:
        target: latents per token to end with.
        start: coefficient to begin with.
        first: latents per token to aim at in the beginning; the target when left out.
        until: share of the run over which the aim falls, evenly in its logarithm.
        gain, rate: see above. Where L0 follows slowly and overshoots, gain helps and rate harms.
    """

    SMOOTHING, TRIM, TRIM_FROM = 0.05, 0.03, 0.8

    def __init__(
        self,
        target: float,
        start: float,
        *,
        first: float | None = None,
        until: float = 0.0,
        gain: float = 1.0,
        rate: float = 0.01,
    ) -> None:
        super().__init__()
        self.gain, self.rate = gain, rate
        self.target, self.first, self.until = target, first or target, until
        self.register_buffer("log_target", torch.tensor(math.log(self.first), dtype=torch.float64))
        self.register_buffer("integral", torch.tensor(math.log(start), dtype=torch.float64))
        self.register_buffer("trims", torch.zeros((), dtype=torch.float64))
        self.register_buffer("log_l0", torch.full((), math.nan, dtype=torch.float64))
        self.register_buffer("log_last", torch.full((), math.nan, dtype=torch.float64))

    def set_target(self, progress: float) -> None:
        """Set what is aimed at, for a share of the run from 0 to 1."""
        left = max(1 - progress / self.until, 0.0) if self.until else 0.0
        self.log_target.fill_(math.log(self.target) + left * math.log(self.first / self.target))
        self.trims.fill_(progress >= max(self.TRIM_FROM, self.until))

    def coefficient(self) -> Tensor:
        """0-d, float64, on the device."""
        return (self.integral + self.gain * self._error(self.log_l0)).exp()

    def threshold_rise(self) -> Tensor:
        """By how much the bar goes up in this step: 0-d, float64; 0 before that."""
        return self.trims * self.TRIM * self._error(self.log_last)

    def _error(self, log_l0: Tensor) -> Tensor:
        error = (log_l0 - self.log_target).clamp(-1, 1)
        return error.nan_to_num(0.0)  # before the first step

    @torch.no_grad()
    def update(self, l0: Tensor) -> None:
        """Take note of a batch's L0 [0-d]."""
        log_l0 = l0.double().clamp_min(self.target / 100).log()
        first = self.log_l0.isnan()
        self.log_l0.copy_(torch.where(first, log_l0, self.log_l0.lerp(log_l0, self.SMOOTHING)))
        self.log_last.copy_(log_l0)
        self.integral += self.rate * self._error(self.log_l0)
