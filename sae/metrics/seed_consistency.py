"""How alike the dictionaries of several seeds are: PW-MCC, latent by latent. Needs no truth.

Compare seeds that started apart: autoencoders with one start agree because of it, and
k-means starts are nearly one start. It is necessary and not sufficient: dictionaries can be wrong
in the same way.
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
    """Which latent of seed t each latent of seed s is assigned to, and how alike the two are.

    partners int64 and matched float64, both [seeds, seeds, d_sae]: latent j of seed s goes with
    latent partners[s, t, j] of seed t, at signed cosine matched[s, t, j]. Of a seed with itself
    they are j and 1.
    """

    partners: Tensor
    matched: Tensor

    def stability(self) -> Tensor:
        """[seeds, d_sae]: mean cosine of a latent with its partners in the other seeds.

        Its mean over everything is `pw_mcc_signed`.
        """
        others = len(self.matched) - 1
        return (self.matched.sum(1) - self.matched.diagonal(dim1=0, dim2=1).T) / others


def match_seeds_signed(decoders: Sequence[Tensor]) -> SeedMatching:
    """Match every pair of decoders [d_sae, d_in] one to one, by the largest sum of signed cosines
    (Hungarian). Raises UserError for fewer than two, or of unlike shapes."""
    shapes = {tuple(W_dec.shape) for W_dec in decoders}
    if len(decoders) < 2 or len(shapes) > 1:
        raise UserError(
            f"decoders of shapes {[tuple(W_dec.shape) for W_dec in decoders]} cannot be compared "
            "between seeds; give two or more of one shape"
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
    """Mean over pairs of seeds of the mean signed cosine of latents matched one to one.

    PW-MCC of Song et al. (arXiv 2505.20254). Read it beside its value at the seeds' starts, and
    `pw_mcc_signed_chance`: it is far from 0 for unrelated dictionaries in few dimensions.
    """
    return match_seeds_signed(decoders).stability().mean().item()


def pw_mcc_signed_chance(d_sae: int, d_in: int, *, seeds: int = 2, seed: int = 0) -> float:
    """`pw_mcc_signed` of random unit vectors: about 0.47 for 32 latents in 16 dimensions."""
    generator = np.random.default_rng(seed)  # not torch's: a start could be one of the draws
    return pw_mcc_signed(
        [torch.from_numpy(generator.standard_normal((d_sae, d_in))) for _ in range(seeds)]
    )


def shared_fraction_signed(
    matching: SeedMatching, encoders: Sequence[Tensor], *, threshold: float = 0.7
) -> float:
    """Share of latents whose partner is above `threshold` in decoder and in encoder cosine.

    The mean over pairs of seeds (Paulo & Belrose, arXiv 2501.16615: "shared" latents). encoders:
    W_enc [d_in, d_sae] of each seed, in the order of the decoders matched.
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
    """How far seeds agree, in a row of figures, and the matching behind them.

    decoders [d_sae, d_in], encoders [d_in, d_sae] and densities [d_sae], one of each a seed. The
    figures: pw_mcc_signed, shared_fraction_signed (above 0.7), and stability_decile_1 to _10, the
    mean stability of the tenth of all latents that fires most rarely, to the most frequent.
    """
    matching = match_seeds_signed(decoders)
    stability = matching.stability()
    deciles, _ = by_frequency(stability, torch.stack([d.double().cpu() for d in densities]))
    figures = {
        "pw_mcc_signed": stability.mean().item(),
        "shared_fraction_signed": shared_fraction_signed(matching, encoders),
    }
    figures |= {f"stability_decile_{n}": mean for n, mean in enumerate(deciles.tolist(), 1)}
    return figures, matching


def by_frequency(values: Tensor, density: Tensor, *, groups: int = 10) -> tuple[Tensor, Tensor]:
    """Mean of `values` in groups of latents from the rarest to the most frequent, deciles at first.

    values and density (share of tokens a latent fires on), of any one shape, for instance
    `stability` and `Firing.density` of each seed. Groups are as equal in size as can be. Returns
    the means and the mean density of each, both [groups].
    """
    order = density.flatten().double().argsort(stable=True)
    parts = order.tensor_split(groups)
    means = [
        torch.stack([x.flatten().double()[part].mean() for part in parts])
        for x in (values, density)
    ]
    return means[0], means[1]
