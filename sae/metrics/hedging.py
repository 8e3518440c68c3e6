"""Feature hedging: how much of their new neighbours old latents had mixed in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def hedging_rate(
    before: Tensor, widened: Tensor, *, draws: int = 50, seed: int = 0
) -> tuple[float, float]:
    """Return the hedging rate (p - p0) / (1 - p0), and its baseline p0.

    p is the mean length of the projection of the old rows' changes on the span of the new rows; p0
    is the same for the span of m random directions. At 0 the changes are unrelated to the new
    latents. Above 0 the old latents had held part of what the new ones took over (Chanin, Dulka &
    Garriga-Alonso, arXiv 2505.11756, who clip the rate at 0).

    Args:
        before: W_dec [d_sae, d_in] of an SAE that was trained on for as long as `widened`, without
            new latents.
        widened: W_dec [d_sae + m, d_in] of the same SAE trained on with m more latents, the old
            ones first. Rows of both are normalised.
        draws: number of random spans for p0.
        seed: seed of the random directions.
    """
    before, widened = (
        torch.nn.functional.normalize(W_dec.detach().double().cpu()) for W_dec in (before, widened)
    )
    change = widened[: len(before)] - before
    new = widened[len(before) :]
    generator = np.random.default_rng(seed)
    baseline = [
        _length_within(change, torch.from_numpy(generator.standard_normal(tuple(new.shape))))
        for _ in range(draws)
    ]
    p, p0 = _length_within(change, new), sum(baseline) / draws
    return (p - p0) / (1 - p0), p0


def _length_within(change: Tensor, directions: Tensor) -> float:
    """Return the mean norm of `change` [n, d_in] projected on the span of `directions`."""
    _, singular, basis = torch.linalg.svd(directions, full_matrices=False)
    basis = basis[singular > 1e-9 * singular[0]]
    return (change @ basis.T).norm(dim=1).mean().item()
