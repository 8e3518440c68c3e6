"""Length and direction of reconstructions x_hat compared with x."""

from __future__ import annotations

import torch
from torch import Tensor


class Shrinkage:
    """Norm ratio E|x_hat| / E|x|, a ratio of means over the whole set (not a mean of ratios).

    1 is ideal. Below 1 the reconstructions are too short, which an L1 penalty causes.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._norms = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows x and x_hat [batch, d_in] without waiting for the device."""
        self._norms += torch.stack(
            [x_hat.double().norm(dim=-1).sum(), x.double().norm(dim=-1).sum()]
        )

    def compute(self) -> float:
        """Return the ratio so far; NaN if every x was 0."""
        x_hat, x = self._norms.tolist()
        return x_hat / x if x else float("nan")


class Cosine:
    """Mean over rows of cos(x, x_hat); a row of zeros has cosine 0.

    It is not centred: if all x share a large mean, a constant prediction already scores near 1, so
    read it beside FVU.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._rows = 0
        self._sum = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows x and x_hat [batch, d_in] without waiting for the device."""
        self._rows += len(x)
        self._sum += torch.cosine_similarity(x.double(), x_hat.double(), dim=-1, eps=1e-30).sum()

    def compute(self) -> float:
        """Return the mean so far."""
        return self._sum.item() / max(self._rows, 1)


class RelativeReconstructionBias:
    """E|x_hat|^2 / E<x, x_hat>, a ratio of means over the whole set.

    Its inverse is the factor that would minimise the squared error if it multiplied every x_hat.
    Below 1 reconstructions are too short, above 1 too long, whatever the error of their direction
    (Rajamanoharan et al. 2024, arXiv 2404.16014).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows x and x_hat [batch, d_in] without waiting for the device."""
        x, x_hat = x.double(), x_hat.double()
        self._sums += torch.stack([x_hat.square().sum(), (x * x_hat).sum()])

    def compute(self) -> float:
        """Return the ratio so far; NaN if every x_hat was 0 or orthogonal to x."""
        square, inner = self._sums.tolist()
        return square / inner if inner else float("nan")
