"""Random problems for the tests of inference methods."""

from __future__ import annotations

import torch
from torch import Tensor


def problem(batch: int, d_sae: int, d_in: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random x [batch, d_in] and atoms of norm 1 [d_sae, d_in], float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, d_in, generator=generator, dtype=torch.float64)
    D = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    return x, torch.nn.functional.normalize(D, dim=1)


def half_error(x: Tensor, z: Tensor, D: Tensor) -> Tensor:
    """Return 1/2 |x - z D|^2 of each row."""
    return 0.5 * (x - z @ D).square().sum(1)
