"""Consistency across seeds (PW-MCC): how similar the dictionaries of several seeds are.

It needs no ground truth. Compare seeds with different initial weights: SAEs with the same initial
weights agree because of them, and initial weights from k-means are nearly the same for all seeds.
Consistency is necessary but not sufficient, because dictionaries can be wrong in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae.errors import UserError
from sae.metrics.decoder_directions import signed_cosines


@dataclass(frozen=True)
class SeedMatching:
    """One-to-one matching of latents between every pair of seeds.

    Attributes:
        partners: latent j of seed s is matched with latent partners[s, t, j] of seed t, int64
            [seeds, seeds, d_sae]; j for s = t.
        matched: their signed cosine, float64 [seeds, seeds, d_sae]; 1 for s = t.
    """

    partners: Tensor
    matched: Tensor

    def stability(self) -> Tensor:
        """Return the mean cosine of each latent with its partners in other seeds [seeds, d_sae].

        The mean over all latents and seeds is `pw_mcc_signed`.
        """
        others = len(self.matched) - 1
        return (self.matched.sum(1) - self.matched.diagonal(dim1=0, dim2=1).T) / others


def match_seeds_signed(decoders: Sequence[Tensor]) -> SeedMatching:
    """Match the latents of every pair of decoders one to one (Hungarian, by signed cosine).

    Args:
        decoders: W_dec [d_sae, d_in] of each seed.

    Raises:
        UserError: there are fewer than two decoders, or their shapes differ.
    """
    shapes = {tuple(W_dec.shape) for W_dec in decoders}
    if len(decoders) < 2 or len(shapes) > 1:
        raise UserError(
            f"decoders of shapes {[tuple(W_dec.shape) for W_dec in decoders]} cannot be compared "
            "between seeds; give two or more of the same shape"
        )
    seeds, d_sae = len(decoders), len(decoders[0])
    partners = torch.arange(d_sae).expand(seeds, seeds, d_sae).clone()
    matched = torch.ones(seeds, seeds, d_sae, dtype=torch.float64)
    for s in range(seeds):
        for t in range(s + 1, seeds):
            gains = signed_cosines(decoders[t], decoders[s])  # [latent of s, latent of t]
            chosen = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
            partners[s, t], matched[s, t] = chosen, gains[torch.arange(d_sae), chosen]
            partners[t, s] = chosen.argsort()
            matched[t, s] = matched[s, t, partners[t, s]]
    return SeedMatching(partners, matched)


def pw_mcc_signed(decoders: Sequence[Tensor]) -> float:
    """Return PW-MCC: the mean over pairs of seeds of the mean signed cosine of matched latents.

    Compare it with its value before training and with `pw_mcc_signed_chance`: it is far from 0 for
    unrelated dictionaries in few dimensions. Source: Song et al., arXiv 2505.20254.
    """
    return match_seeds_signed(decoders).stability().mean().item()


def pw_mcc_signed_chance(d_sae: int, d_in: int, *, seeds: int = 2, seed: int = 0) -> float:
    """Return PW-MCC of random unit vectors: about 0.47 for 32 latents in 16 dimensions."""
    generator = np.random.default_rng(seed)  # not torch's: initial weights could equal a draw
    return pw_mcc_signed(
        [torch.from_numpy(generator.standard_normal((d_sae, d_in))) for _ in range(seeds)]
    )


def shared_fraction_signed(
    matching: SeedMatching, encoders: Sequence[Tensor], *, threshold: float = 0.7
) -> float:
    """Return the share of latents with a partner above `threshold` in both cosines.

    The decoder cosine and the encoder cosine must exceed the threshold. The share is a mean over
    pairs of seeds (Paulo & Belrose, arXiv 2501.16615: "shared" latents).

    Args:
        matching: matching of the decoders.
        encoders: W_enc [d_in, d_sae] of each seed, in the same order.
        threshold: smallest cosine.
    """
    rows = [torch.nn.functional.normalize(W_enc.detach().double().cpu().T) for W_enc in encoders]
    shared = [
        (matching.matched[s, t] > threshold)
        & ((rows[s] * rows[t][matching.partners[s, t]]).sum(1) > threshold)
        for s in range(len(rows))
        for t in range(s)
    ]
    return torch.stack(shared).double().mean().item()


def agreement(
    decoders: Sequence[Tensor], encoders: Sequence[Tensor], densities: Sequence[Tensor]
) -> tuple[dict[str, float], SeedMatching]:
    """Measure how far seeds agree.

    Args:
        decoders: W_dec [d_sae, d_in] of each seed.
        encoders: W_enc [d_in, d_sae] of each seed.
        densities: share of tokens on which each latent fires [d_sae], of each seed.

    Returns:
        The metrics pw_mcc_signed, shared_fraction_signed (above 0.7), and stability_decile_1 to
        stability_decile_10, the mean stability of tenths of all latents from the rarest to the most
        frequent; and the matching.
    """
    matching = match_seeds_signed(decoders)
    stability = matching.stability()
    deciles, _ = by_frequency(stability, torch.stack([d.double().cpu() for d in densities]))
    metrics = {
        "pw_mcc_signed": stability.mean().item(),
        "shared_fraction_signed": shared_fraction_signed(matching, encoders),
    }
    metrics |= {f"stability_decile_{n}": mean for n, mean in enumerate(deciles.tolist(), 1)}
    return metrics, matching


def by_frequency(values: Tensor, density: Tensor, *, groups: int = 10) -> tuple[Tensor, Tensor]:
    """Return the mean of `values` in groups of latents from the rarest to the most frequent.

    Args:
        values: value of each latent, for example `SeedMatching.stability`.
        density: share of tokens on which each latent fires, of the same shape.
        groups: number of groups, of nearly equal size; by default deciles.

    Returns:
        The mean value and the mean density of each group, both [groups].
    """
    order = density.flatten().double().argsort(stable=True)
    parts = order.tensor_split(groups)
    means = [
        torch.stack([x.flatten().double()[part].mean() for part in parts])
        for x in (values, density)
    ]
    return means[0], means[1]
