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

    Args:
        target: latents per token to end with.
        start: coefficient to begin with.
        first: latents per token to aim at in the beginning; the target when left out.
        until: share of the run over which the aim falls, evenly in its logarithm.
    """

    GAIN, RATE, SMOOTHING = 1.0, 0.01, 0.05

    def __init__(
        self, target: float, start: float, *, first: float | None = None, until: float = 0.0
    ) -> None:
        super().__init__()
        self.target, self.first, self.until = target, first or target, until
        self.register_buffer("log_target", torch.tensor(math.log(self.first), dtype=torch.float64))
        self.register_buffer("integral", torch.tensor(math.log(start), dtype=torch.float64))
        self.register_buffer("log_l0", torch.full((), math.nan, dtype=torch.float64))

    def aim(self, progress: float) -> None:
        """Set what is aimed at, for a share of the run from 0 to 1."""
        left = max(1 - progress / self.until, 0.0) if self.until else 0.0
        self.log_target.fill_(math.log(self.target) + left * math.log(self.first / self.target))

    def coefficient(self) -> Tensor:
        """0-d, float64, on the device."""
        return (self.integral + self.GAIN * self._error()).exp()

    def _error(self) -> Tensor:
        error = (self.log_l0 - self.log_target).clamp(-1, 1)
        return error.nan_to_num(0.0)  # before the first step

    @torch.no_grad()
    def update(self, l0: Tensor) -> None:
        """Take note of a batch's L0 [0-d]."""
        log_l0 = l0.double().clamp_min(self.target / 100).log()
        first = self.log_l0.isnan()
        self.log_l0.copy_(torch.where(first, log_l0, self.log_l0.lerp(log_l0, self.SMOOTHING)))
        self.integral += self.RATE * self._error()
