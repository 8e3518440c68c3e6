"""Where parameters start."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(n: int, width: int, *, seed: int, dtype: torch.dtype) -> Tensor:
    """`n` directions, uniform on the sphere: float [n, width] with rows of norm 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, width, generator=generator, dtype=torch.float32)
    return torch.nn.functional.normalize(rows, dim=1).to(dtype)


@torch.no_grad()
def geometric_median(x: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to the rows of `x` [n, d], by Weiszfeld's method.

    Unlike the mean it does not follow a few rows of enormous norm, which language models have.
    Stops when a step is shorter than `tolerance` times the median's norm.
    """
    x = x.double()
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-12)
        following = weights @ x / weights.sum()
        step = (following - median).norm()
        median = following
        if step <= tolerance * median.norm():
            break
    return median
