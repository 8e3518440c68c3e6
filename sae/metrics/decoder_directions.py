"""Compare decoder rows with true directions, and with each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_ROWS = 2048  # rows of a table of cosines at a time, to bound memory


def signed_cosines(W_dec: Tensor, truth: Tensor) -> Tensor:
    """Return signed cosines [features, d_sae] in float64; a row of zeros has cosine 0."""
    W_dec, truth = (
        rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        for rows in (W_dec.detach().double().cpu(), truth.detach().double().cpu())
    )
    return truth @ W_dec.T


def dictionary_mcc_signed(W_dec: Tensor, truth: Tensor) -> float:
    """Return the mean over true features of the signed cosine with the latent assigned to each.

    The assignment is one to one and optimal (Hungarian). With d_sae < features the features left
    over count as 0. A latent that points the other way is no match (Song et al., arXiv
    2505.20254); tools that take |cos| report higher values. Compare with `dictionary_mcc_nulls`.

    Args:
        W_dec: decoder [d_sae, d_in]; rows need not be normalised.
        truth: true directions [features, d_in].
    """
    return matched_cosines_signed(W_dec, truth).mean().item()


def matched_cosines_signed(W_dec: Tensor, truth: Tensor) -> Tensor:
    """Return the cosine of each true feature with its latent, float64 [features]; 0 without one."""
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
    samples: Tensor | None = None,
    draws: int = 4,
    seed: int = 0,
) -> float:
    """Return the mean of score(W_dec, truth) over untrained decoders with d_sae rows.

    Args:
        score: a metric of a decoder and true directions.
        truth: true directions [features, d_in].
        d_sae: number of rows of each decoder; rows that `samples` cannot fill are left out.
        samples: training activations [n, d_in]. A decoder is then d_sae of them, drawn without
            replacement and centred by the mean of all. Without samples it is random directions.
        draws: number of decoders.
        seed: seed of the draws.
    """
    # numpy's generator: with torch's, a world or SAE of the same seed would equal one of the draws.
    generator = np.random.default_rng(seed)
    if samples is None:
        shape = (d_sae, truth.shape[1])
        decoders = (torch.from_numpy(generator.standard_normal(shape)) for _ in range(draws))
    else:
        rows = samples.detach().double().cpu()
        rows = rows - rows.mean(0)
        decoders = (rows[generator.permutation(len(rows))[:d_sae]] for _ in range(draws))
    return sum(score(decoder, truth) for decoder in decoders) / draws


def dictionary_mcc_chance(
    truth: Tensor, d_sae: int, *, samples: Tensor | None = None, draws: int = 4, seed: int = 0
) -> float:
    """Return the mean `dictionary_mcc_signed` of untrained decoders, see `dictionary_chance`.

    It is far from 0: about 0.52 for 16 features and 16 latents in 8 dimensions.
    """
    return dictionary_chance(
        dictionary_mcc_signed, truth, d_sae, samples=samples, draws=draws, seed=seed
    )


def dictionary_mcc_nulls(truth: Tensor, d_sae: int, samples: Tensor) -> dict[str, float]:
    """Return both chance levels of `dictionary_mcc_signed`, and the larger as its chance.

    Samples resemble features if few features are active, so training samples taken as decoder rows
    are often the stronger null.

    Args:
        truth: true directions [features, d_in].
        d_sae: number of latents.
        samples: training activations [n, d_in], at least d_sae of them.
    """
    # Of 1,000 and more features one draw is exact to about 0.001, and matching takes seconds.
    draws = 4 if len(truth) < 1000 else 1
    random = dictionary_mcc_chance(truth, d_sae, draws=draws)
    of_samples = dictionary_mcc_chance(truth, d_sae, samples=samples, draws=draws)
    return {
        "dictionary_mcc_signed_chance": max(random, of_samples),
        "dictionary_mcc_random": random,
        "dictionary_mcc_samples": of_samples,
    }


def mmcs(W_dec: Tensor, truth: Tensor) -> float:
    """Return the mean over true features of the largest signed cosine with any latent.

    Several features may share one latent, so it is higher than `dictionary_mcc_signed`. Read it
    beside `mmcs_uniqueness`. Source: Sharkey et al.
    """
    return signed_cosines(W_dec, truth).amax(1).mean().item()


def mmcs_of_latents(W_dec: Tensor, truth: Tensor) -> float:
    """Return the mean over latents of the largest signed cosine with any true feature.

    It is to `mmcs` as precision is to recall: latents that match no feature lower it.
    """
    return signed_cosines(W_dec, truth).amax(0).mean().item()


def mmcs_uniqueness(W_dec: Tensor, truth: Tensor) -> float:
    """Return the share of latents left if latents with the same nearest feature count once.

    It is at most features / d_sae.
    """
    return uniqueness_of_latents(W_dec, truth).mean().item()


def uniqueness_of_latents(W_dec: Tensor, truth: Tensor) -> Tensor:
    """Return 1 over the number of latents with the same nearest feature, for each latent.

    The result is float64 [d_sae]; the latent itself is counted.
    """
    nearest = signed_cosines(W_dec, truth).argmax(0)
    return 1 / nearest.bincount()[nearest].double()


def c_dec(W_dec: Tensor) -> float:
    """Return the mean |cos| of two different rows of W_dec [d_sae, d_in].

    If too few latents may fire, latents mix features and their rows overlap, so over a sweep of L0
    c_dec is smallest near the right L0 (Chanin & Garriga-Alonso, arXiv 2508.16560). For random rows
    see `c_dec_chance`.
    """
    return c_dec_of_latents(W_dec).mean().item()


def c_dec_of_latents(W_dec: Tensor) -> Tensor:
    """Return the mean |cos| of each latent's row with all others, float64 [d_sae]."""
    rows = torch.nn.functional.normalize(W_dec.detach().double().cpu())
    totals = torch.cat([(part @ rows.T).abs().sum(1) for part in rows.split(_ROWS)])
    return (totals - rows.square().sum(1)) / (len(rows) - 1)


def c_dec_chance(d_in: int) -> float:
    """Return the approximate `c_dec` of random directions, E|cos| = sqrt(2 / (pi d_in))."""
    return math.sqrt(2 / (math.pi * d_in))


def s_n(x: Tensor, W_dec: Tensor, b_dec: Tensor, n: int) -> float:
    """Return the (n * batch)-th largest projection of x - b_dec on the decoder, counted from 0.

    Projections of such low rank should be small. Like `c_dec`, over a sweep of L0 the result is
    smallest near the right L0 (Chanin & Garriga-Alonso, arXiv 2508.16560).

    Args:
        x: activations [batch, d_in].
        W_dec: decoder [d_sae, d_in]; rows are normalised.
        b_dec: [d_in].
        n: rank per row, below d_sae; for example half of it.
    """
    rows = torch.nn.functional.normalize(W_dec.detach().float())
    projections = ((x.float() - b_dec.float()) @ rows.T).flatten()
    return projections.kthvalue(projections.numel() - n * len(x)).values.item()
