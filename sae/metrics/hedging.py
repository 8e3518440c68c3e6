"""How much latents change when others join them: features they had mixed in for want of room."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def hedging_rate(
    before: Tensor, widened: Tensor, *, draws: int = 50, seed: int = 0
) -> tuple[float, float]:
    """(p - p0) / (1 - p0), and p0: how far old latents moved within the span of new ones.

    before: W_dec [d_sae, d_in]. widened: W_dec [d_sae + m, d_in] of the same autoencoder trained on
    with m latents more, the old ones first. Rows are taken at norm 1. p is the mean length of the
    projection of the old rows' changes on the span of the new rows, and p0 the same for the span
    of m random directions, over `draws` of them. 0: the changes have nothing to do with the new
    latents; above: old latents held part of what the new ones took over (Chanin, Dulka &
    Garriga-Alonso, arXiv 2505.11756, who clip it at 0 and compare with an autoencoder trained on
    just as long without new latents: `before` should be that one).
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
    """Mean norm of the projections of `change` [n, d_in] on the span of `directions` [m, d_in]."""
    _, singular, basis = torch.linalg.svd(directions, full_matrices=False)
    basis = basis[singular > 1e-9 * singular[0]]
    return (change @ basis.T).norm(dim=1).mean().item()
