"""Control of a penalty's coefficient, so that the run ends with a target L0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class L0Controller(nn.Module):
    """A proportional-integral controller of the logarithm of a coefficient.

    Let e be the logarithm of L0 over its target, smoothed over about 20 steps and clamped to +-1.
    The coefficient is exp(I + gain e), and I grows by rate * e per step. All state stays on
    the device.

    The current target falls from `first` to `target`, because a dictionary that may use more
    latents while it is learned ends up better (MCC .86 -> .95 for JumpReLU, .53 -> .95 for L1, on
    the data of `benchmarks.recovery`).

    In the last fifth of the run, after the target has fallen, the firing threshold of all latents
    moves too, by TRIM * e per step, with e not smoothed. Its unit is that of pre-activations, which
    are about 1. L0 responds
    to the coefficient over hundreds of steps and ended up to 30% off; it responds to the threshold
    at once.

    Args:
        target: L0 (latents per token) at the end of the run.
        start: Coefficient at the start.
        first: Target at the start of the run; `target` if None.
        until: Share of the run over which the target falls, linearly in its logarithm.
        gain, rate: See above. If L0 responds slowly and overshoots, raise `gain` and lower `rate`.
    """

    log_target: Tensor
    integral: Tensor
    trims: Tensor
    log_l0: Tensor
    log_last: Tensor

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
        """Set the target for a share of the run from 0 to 1."""
        left = max(1 - progress / self.until, 0.0) if self.until else 0.0
        self.log_target.fill_(math.log(self.target) + left * math.log(self.first / self.target))
        self.trims.fill_(progress >= max(self.TRIM_FROM, self.until))

    def coefficient(self) -> Tensor:
        """Return the coefficient of the penalty: 0-d, float64, on the device."""
        return (self.integral + self.gain * self._error(self.log_l0)).exp()

    def threshold_rise(self) -> Tensor:
        """Return by how much thresholds rise in this step: 0-d, float64, 0 until the last fifth."""
        return self.trims * self.TRIM * self._error(self.log_last)

    def _error(self, log_l0: Tensor) -> Tensor:
        error = (log_l0 - self.log_target).clamp(-1, 1)
        return error.nan_to_num(0.0)  # before the first step

    @torch.no_grad()
    def update(self, l0: Tensor) -> None:
        """Update the controller with the L0 of a batch (0-d)."""
        log_l0 = l0.double().clamp_min(self.target / 100).log()
        first = self.log_l0.isnan()
        self.log_l0.copy_(torch.where(first, log_l0, self.log_l0.lerp(log_l0, self.SMOOTHING)))
        self.log_last.copy_(log_l0)
        self.integral += self.rate * self._error(self.log_l0)
