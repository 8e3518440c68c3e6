"""Initial values of parameters."""

from __future__ import annotations

import torch
from torch import Tensor


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
        tolerance: Stop when an update is shorter than this share of the median's norm.

    Returns:
        The point that minimises the sum of distances to the rows, float64 [d].
    """
    x = x.double()
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-12)
        updated = weights @ x / weights.sum()
        step = (updated - median).norm()
        median = updated
        if step <= tolerance * median.norm():
            break
    return median
