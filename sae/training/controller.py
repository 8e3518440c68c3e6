"""A penalty's coefficient, steered so that the run ends with a wanted L0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class L0Controller(nn.Module):
    """Proportional and integral control of the logarithm of a coefficient.

    With e the logarithm of L0 over its target, smoothed over some 20 steps and cut to +-1, the
    coefficient is exp(I + GAIN e), and I grows by RATE e a step. Everything stays on the device.

    Args:
        target: latents per token.
        start: coefficient to begin with.
    """

    GAIN, RATE, SMOOTHING = 1.0, 0.01, 0.05

    def __init__(self, target: float, start: float) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("integral", torch.tensor(math.log(start), dtype=torch.float64))
        self.register_buffer("log_l0", torch.full((), math.nan, dtype=torch.float64))

    def coefficient(self) -> Tensor:
        """0-d, float64, on the device."""
        return (self.integral + self.GAIN * self._error()).exp()

    def _error(self) -> Tensor:
        error = (self.log_l0 - math.log(self.target)).clamp(-1, 1)
        return error.nan_to_num(0.0)  # before the first step

    @torch.no_grad()
    def update(self, l0: Tensor) -> None:
        """Take note of a batch's L0 [0-d]."""
        log_l0 = l0.double().clamp_min(self.target / 100).log()
        first = self.log_l0.isnan()
        self.log_l0.copy_(torch.where(first, log_l0, self.log_l0.lerp(log_l0, self.SMOOTHING)))
        self.integral += self.RATE * self._error()
