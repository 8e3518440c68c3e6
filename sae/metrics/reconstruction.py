"""How x_hat relates to x beyond the squared error: does it shrink, does it point the same way."""

from __future__ import annotations

import torch
from torch import Tensor


class Shrinkage:
    """E|x_hat| / E|x|, a ratio of means over the whole set (not a mean of ratios).

    Below 1 the reconstructions are too short, which an L1 penalty causes; 1 is right.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._norms = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows: x and x_hat [batch, d_in]. Never waits for the device."""
        self._norms += torch.stack(
            [x_hat.double().norm(dim=-1).sum(), x.double().norm(dim=-1).sum()]
        )

    def compute(self) -> float:
        """The ratio so far; NaN where every x was 0."""
        x_hat, x = self._norms.tolist()
        return x_hat / x if x else float("nan")


class Cosine:
    """Mean over rows of cos(x, x_hat); a row of zeros counts as cosine 0.

    Not centred: where all x share a large mean the constant prediction scores near 1 already, so
    read it beside FVU.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._rows = 0
        self._sum = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows: x and x_hat [batch, d_in]. Never waits for the device."""
        self._rows += len(x)
        self._sum += torch.cosine_similarity(x.double(), x_hat.double(), dim=-1, eps=1e-30).sum()

    def compute(self) -> float:
        """The mean so far."""
        return self._sum.item() / max(self._rows, 1)


class RelativeReconstructionBias:
    """E|x_hat|^2 / E<x, x_hat>, a ratio of means over the whole set.

    1 / it is the factor that, multiplied onto every x_hat, would make the squared error least:
    below 1 reconstructions are too short, above 1 too long, whatever direction they miss
    (Rajamanoharan et al. 2024, arXiv 2404.16014).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add rows: x and x_hat [batch, d_in]. Never waits for the device."""
        x, x_hat = x.double(), x_hat.double()
        self._sums += torch.stack([x_hat.square().sum(), (x * x_hat).sum()])

    def compute(self) -> float:
        """The ratio so far; NaN where x_hat is 0, or at right angles to x, throughout."""
        own, shared = self._sums.tolist()
        return own / shared if shared else float("nan")
