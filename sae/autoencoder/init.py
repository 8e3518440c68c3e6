"""Initial values of parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Rows for the geometric median, and rows at a time for the mean distance to it.
SAMPLE_ROWS = 8192
# If their mean distance to the center is below this share of their norm, activations are the same.
SAME = 1e-9


def unit_rows(n: int, width: int, *, seed: int, dtype: torch.dtype) -> Tensor:
    """Return `n` directions drawn uniformly from the sphere: [n, width], rows of norm 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, width, generator=generator, dtype=torch.float32)
    return torch.nn.functional.normalize(rows, dim=1).to(dtype)


@torch.no_grad()
def geometric_median(x: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Compute the geometric median of the rows of `x` with Weiszfeld's algorithm.

    Unlike the mean, it does not follow the few rows of enormous norm that language models have.

    Args:
        x: Points, shape [n, d].
        iterations: Upper bound on the number of updates.
        tolerance: Stop when an update is shorter than this share of the mean distance of the rows
            to the median.

    Returns:
        The point that minimises the sum of distances to the rows, float64 [d].
    """
    x = x.double()
    median = x.mean(0)
    for _ in range(iterations):
        distances = (x - median).norm(dim=1)
        weights = 1 / distances.clamp_min(1e-12)
        updated = weights @ x / weights.sum()
        step = (updated - median).norm()
        median = updated
        if step <= tolerance * distances.mean():
            break
    return median


@torch.no_grad()
def center_and_scale(x: Tensor, *, center: bool = True) -> tuple[Tensor, float]:
    """Return the center of activations, and the factor that brings them to a standard size.

    The mean distance of `scale * x` to its center is sqrt(width). If all activations are the same,
    sqrt(width) is their norm after scaling, and if all are zero, the scale is infinite.

    Args:
        x: Activations, shape [n, width].
        center: False puts the center at the origin.

    Returns:
        The geometric median of about 8,192 rows, float64 [width]; and the scale.
    """
    middle = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    if center:
        # Rows from all over the sample, because neighbors are of the same documents.
        middle = geometric_median(x[:: max(1, len(x) // SAMPLE_ROWS)])
    mean_norm = lambda origin: torch.cat(
        [(part.double() - origin).norm(dim=1) for part in x.split(SAMPLE_ROWS)]
    ).mean().item()  # fmt: skip
    size, spread = mean_norm(torch.zeros_like(middle)), mean_norm(middle)
    if spread <= SAME * size:
        spread = size
    return middle, math.sqrt(x.shape[1]) / spread if spread else math.inf
