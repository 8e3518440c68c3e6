"""What a decoder's rows say: how well they match known directions, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_ROWS = 2048  # of a table of cosines at a time


def signed_cosines(W_dec: Tensor, truth: Tensor) -> Tensor:
    """Signed cosines [features, d_sae] in float64; a row of zeros has cosine 0 with everything."""
    W_dec, truth = (
        rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        for rows in (W_dec.detach().double().cpu(), truth.detach().double().cpu())
    )
    return truth @ W_dec.T


def dictionary_mcc_signed(W_dec: Tensor, truth: Tensor) -> float:
    """Mean over the true features of the signed cosine with the latent assigned to each.

    W_dec [d_sae, d_in], truth [features, d_in]; rows need no normalising. One latent serves at
    most one feature; the assignment is the best there is (Hungarian). With d_sae < features the
    features left over count 0. Signed: a latent that points the other way is no match (Song et al.,
    arXiv 2505.20254; tools that take |cos| read higher). Read it beside `dictionary_mcc_chance`.
    """
    return matched_cosines_signed(W_dec, truth).mean().item()


def matched_cosines_signed(W_dec: Tensor, truth: Tensor) -> Tensor:
    """What `dictionary_mcc_signed` is the mean of: float64 [features], 0 without a latent."""
    cosines = signed_cosines(W_dec, truth)
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    matched = cosines.new_zeros(len(truth))
    matched[rows] = cosines[rows, columns]
    return matched


def dictionary_chance(
    score: Callable[[Tensor, Tensor], float],
    truth: Tensor,
    d_sae: int,
    *,
    draws: int = 4,
    seed: int = 0,
) -> float:
    """Mean of score(W_dec, truth) over `draws` random decoders of d_sae unit directions."""
    # Not torch's generator: a truth or an SAE drawn with the same seed would be one of the draws.
    generator = np.random.default_rng(seed)
    shape = (d_sae, truth.shape[1])
    scores = [
        score(torch.from_numpy(generator.standard_normal(shape)), truth) for _ in range(draws)
    ]
    return sum(scores) / draws


def dictionary_mcc_chance(truth: Tensor, d_sae: int, *, draws: int = 4, seed: int = 0) -> float:
    """`dictionary_chance` of `dictionary_mcc_signed`.

    It is far from 0: about 0.52 for 16 features and latents in 8 dimensions.
    """
    return dictionary_chance(dictionary_mcc_signed, truth, d_sae, draws=draws, seed=seed)


def mmcs(W_dec: Tensor, truth: Tensor) -> float:
    """Mean over the true features of the largest signed cosine with any latent (Sharkey et al.).

    Several features may share one latent, so it reads higher than `dictionary_mcc_signed` and
    belongs beside `mmcs_uniqueness`.
    """
    return signed_cosines(W_dec, truth).amax(1).mean().item()


def mmcs_of_latents(W_dec: Tensor, truth: Tensor) -> float:
    """Mean over the latents of the largest signed cosine with any true feature.

    `mmcs` from the other side: a precision, where that is a recall. Latents of no feature lower it.
    """
    return signed_cosines(W_dec, truth).amax(0).mean().item()


def mmcs_uniqueness(W_dec: Tensor, truth: Tensor) -> float:
    """Share of latents left when those with the same nearest feature are counted once.

    At most features / d_sae.
    """
    return uniqueness_of_latents(W_dec, truth).mean().item()


def uniqueness_of_latents(W_dec: Tensor, truth: Tensor) -> Tensor:
    """What `mmcs_uniqueness` is the mean of, float64 [d_sae]: 1 over the number of latents that a
    latent shares its nearest feature with, itself included."""
    nearest = signed_cosines(W_dec, truth).argmax(0)
    return 1 / nearest.bincount()[nearest].double()


def c_dec(W_dec: Tensor) -> float:
    """Mean |cos| of two different rows of W_dec [d_sae, d_in].

    Latents that mix features because too few may fire share directions, so over a sweep of L0 it is
    least about where L0 is right (Chanin & Garriga-Alonso, arXiv 2508.16560). Random rows have
    `c_dec_chance`.
    """
    return c_dec_of_latents(W_dec).mean().item()


def c_dec_of_latents(W_dec: Tensor) -> Tensor:
    """What `c_dec` is the mean of, float64 [d_sae]: mean |cos| of each latent with the others."""
    rows = torch.nn.functional.normalize(W_dec.detach().double().cpu())
    totals = torch.cat([(part @ rows.T).abs().sum(1) for part in rows.split(_ROWS)])
    return (totals - rows.square().sum(1)) / (len(rows) - 1)


def c_dec_chance(d_in: int) -> float:
    """About `c_dec` of random directions: E|cos| = sqrt(2 / (pi d_in))."""
    return math.sqrt(2 / (math.pi * d_in))


def s_n(x: Tensor, W_dec: Tensor, b_dec: Tensor, n: int) -> float:
    """The (n * batch)-th largest, counted from 0, of all projections of x - b_dec on the decoder.

    x [batch, d_in], W_dec [d_sae, d_in] with rows taken at norm 1, b_dec [d_in]; n below d_sae, for
    instance half of it. Projections that far down should be small: like `c_dec` it is least over a
    sweep of L0 about where L0 is right (Chanin & Garriga-Alonso, arXiv 2508.16560).
    """
    rows = torch.nn.functional.normalize(W_dec.detach().float())
    projections = ((x.float() - b_dec.float()) @ rows.T).flatten()
    return projections.kthvalue(projections.numel() - n * len(x)).values.item()
