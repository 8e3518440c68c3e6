"""Fraction of variance unexplained, over a whole evaluation set."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.deterministic_sum import deterministic_sum


class FVU:
    """FVU = sum |x - x_hat|^2 / sum |x - mean|^2, with both sums and the mean over the whole set.

    These are global sums, not a mean of per-batch ratios, so the result depends neither on the
    batch size nor on the scale of x. 0 is perfect, 1 is what the constant prediction `mean` gets,
    and above 1 is worse than that constant. Sums are float64 with the pairwise update of Chan,
    Golub & LeVeque (1979), so a mean a thousand times the standard deviation costs no digits.
    """

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.rows = 0
        self.mean = zeros(d_in)
        self._variation = zeros()
        self._residual = zeros()

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows x and x_hat [batch, d_in] without waiting for the device."""
        if len(x) == 0:
            return
        # Converted first, because differences in bf16 or float32 would be rounded.
        x = x.double()
        mean = x.mean(0)
        rows = self.rows + len(x)
        shift = mean - self.mean
        self._variation += deterministic_sum((x - mean).square())
        self._variation += shift.square().sum() * (self.rows * len(x) / rows)
        self._residual += deterministic_sum((x - x_hat.double()).square())
        self.mean += shift * (len(x) / rows)
        self.rows = rows

    def compute(self) -> float:
        """Return the FVU so far; NaN if x never varied."""
        variation = self._variation.item()
        return self._residual.item() / variation if variation else float("nan")
