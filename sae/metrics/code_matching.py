"""How well codes match codes that are known: which latent is which feature, and does it fire right.

Shapes: z [n, features] the truth and z_hat [n, d_sae] the codes of the same n samples, each either
dense or a `Codes`. Everything works on the non-zero values, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from torch import Tensor

from sae.errors import UserError
from sae_kernels.codes import Codes

# A column whose variance is below this share of its mean square is constant up to rounding.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class CodeMatching:
    """The latent assigned to each true feature that is active in the sample.

    features [a] int64, rising; latents [a] int64, -1 for a feature without one; correlations [a]
    float64, Pearson over the samples, 0 where latents is -1. `inactive` features are 0 on every
    sample: nothing can be said of them, so they are left out, and their number belongs beside
    every score.
    """

    features: Tensor
    latents: Tensor
    correlations: Tensor
    inactive: int

    def mean(self) -> float:
        """Mean correlation over the active features: the code MCC. NaN if none is active."""
        return self.correlations.mean().item()


def match_codes_absolute(z: Tensor | Codes, z_hat: Tensor | Codes) -> CodeMatching:
    """The assignment (Hungarian) with the largest sum of |Pearson|; `correlations` are absolute.

    A latent serves at most one feature. A column that is constant correlates 0 with everything and
    is never assigned. Raises UserError when z and z_hat differ in samples.
    """
    return _match(z, z_hat, np.abs)


def match_codes_signed(z: Tensor | Codes, z_hat: Tensor | Codes) -> CodeMatching:
    """The same with signed Pearson, for z >= 0: a latent that falls as the feature rises is none.

    A feature may stay without a latent, so no correlation is below 0.
    """
    return _match(z, z_hat, lambda correlations: correlations.clip(min=0))


def code_mcc_absolute(z: Tensor | Codes, z_hat: Tensor | Codes) -> float:
    """Mean over the active true features of |Pearson(z_i, z_hat_j)|, j assigned by Hungarian.

    Features without a latent and constant columns count 0. O'Neill et al. (arXiv 2411.13117) score
    codes so where widths agree; where they differ they match greedily, which reads higher. Its
    chance level is `code_chance(code_mcc_absolute, z, z_hat)`, far from 0 for few samples.
    """
    return match_codes_absolute(z, z_hat).mean()


def code_mcc_signed(z: Tensor | Codes, z_hat: Tensor | Codes) -> float:
    """`code_mcc_absolute` with signed Pearson: the one to use where z >= 0 and z_hat >= 0."""
    return match_codes_signed(z, z_hat).mean()


def code_chance(
    score: Callable[[Codes | Tensor, Codes | Tensor], float],
    z: Tensor | Codes,
    z_hat: Tensor | Codes,
    *,
    draws: int = 2,
    seed: int = 0,
) -> float:
    """Mean of score(z, z_hat) over `draws` shuffles of z_hat's samples.

    Every column keeps its values and every code its latents; only what they have to do with z is
    lost.
    """
    generator = np.random.default_rng(seed)
    matrix = samples_matrix(z_hat)
    scores = [
        score(z, as_codes(matrix[generator.permutation(matrix.shape[0])])) for _ in range(draws)
    ]
    return sum(scores) / draws


@dataclass(frozen=True)
class Support:
    """Precision, recall and F1 of which entries are active, one value a unit, float64 [units]."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


def support_per_matched_latent(
    z: Tensor | Codes, z_hat: Tensor | Codes, matching: CodeMatching, *, eps: float = 0.0
) -> Support:
    """For each active feature, over samples: does its latent fire (|z_hat| > eps) where z is not 0?

    TP samples where both are active: precision TP / fired, recall TP / active, F1 their harmonic
    mean; 0 for a feature without a latent or whose latent never fires. Units are
    `matching.features` (the mean over latents is SAELens's convention).
    """
    truth, fired = _supports(z, z_hat, matching, eps)
    return _support(_sums(truth * fired, 0), _sums(fired, 0), _sums(truth, 0), empty=0.0)


def support_per_sample(
    z: Tensor | Codes, z_hat: Tensor | Codes, matching: CodeMatching, *, eps: float = 0.0
) -> Support:
    """For each sample, over features: are the latents that fire those of the active features?

    Latents of no feature count as wrong when they fire. A sample where nothing is active and
    nothing fires scores 1. Units are the n samples (Barin Pacela et al., arXiv 2603.28744).
    """
    truth, fired = _supports(z, z_hat, matching, eps)
    all_fired = _sums(abs(samples_matrix(z_hat)) > eps, 1)
    return _support(_sums(truth * fired, 1), all_fired, _sums(truth, 1), empty=1.0)


def exact_support_rate(
    z: Tensor | Codes, z_hat: Tensor | Codes, matching: CodeMatching, *, eps: float = 0.0
) -> float:
    """Share of samples where the latents that fire are exactly those of the active features."""
    return (support_per_sample(z, z_hat, matching, eps=eps).f1 == 1).double().mean().item()


def samples_matrix(z: Tensor | Codes) -> csr_array:
    """z as a float64 sparse matrix [n, columns] without explicit zeros or duplicates."""
    if isinstance(z, Codes):
        starts = z.by_latent().row_starts.cpu().numpy()
        values = z.values.detach().flatten().double().cpu().numpy()[: starts[-1]]
        indices = z.indices.flatten().cpu().numpy()[: starts[-1]]
        # A copy, since what follows works in place.
        matrix = csr_array((values, indices, starts), shape=(z.batch, z.d_sae), copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix
    return csr_array(z.detach().double().cpu().numpy())


def as_codes(matrix: csr_array) -> Codes:
    """The ragged `Codes` that `samples_matrix` gives back as `matrix`."""
    return Codes(
        torch.from_numpy(matrix.data),
        torch.from_numpy(matrix.indices.astype(np.int64)),
        matrix.shape[1],
        torch.from_numpy(matrix.indptr.astype(np.int64)),
    )


def _sums(matrix: csr_array, axis: int) -> np.ndarray:
    return np.asarray(matrix.sum(axis), dtype=np.float64).ravel()


def _spread(matrix: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column; 0 for one that is constant."""
    mean = _sums(matrix, 0) / matrix.shape[0]
    square = _sums(matrix.multiply(matrix), 0) / matrix.shape[0]
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > _CONSTANT * square, variance, 0.0))


def _match(
    z: Tensor | Codes, z_hat: Tensor | Codes, gain: Callable[[np.ndarray], np.ndarray]
) -> CodeMatching:
    truth, codes = samples_matrix(z), samples_matrix(z_hat)
    n, d_true = truth.shape
    if codes.shape[0] != n:
        raise UserError(f"z has {n} samples and z_hat {codes.shape[0]}; give codes of the same")
    features = np.flatnonzero(_sums(truth != 0, 0))
    truth = truth[:, features]
    mean, sd = _spread(truth)
    mean_hat, sd_hat = _spread(codes)
    varying, alive = np.flatnonzero(sd), np.flatnonzero(sd_hat)
    together = (truth[:, varying].T @ codes[:, alive]).toarray() / n
    together -= np.outer(mean[varying], mean_hat[alive])
    gains = gain(together / np.outer(sd[varying], sd_hat[alive]))
    rows, columns = linear_sum_assignment(gains, maximize=True)
    won = gains[rows, columns] > 0
    rows, columns = rows[won], columns[won]
    latents, correlations = np.full(len(features), -1), np.zeros(len(features))
    latents[varying[rows]] = alive[columns]
    correlations[varying[rows]] = gains[rows, columns].clip(max=1)
    return CodeMatching(
        torch.from_numpy(features),
        torch.from_numpy(latents),
        torch.from_numpy(correlations),
        d_true - len(features),
    )


def _supports(
    z: Tensor | Codes, z_hat: Tensor | Codes, matching: CodeMatching, eps: float
) -> tuple[csr_array, csr_array]:
    """0/1 matrices [n, a]: where each active feature is active, and where its latent fires."""
    truth = samples_matrix(z)[:, matching.features.numpy()] != 0
    codes = abs(samples_matrix(z_hat)) > eps
    latents = matching.latents.numpy()
    found = np.flatnonzero(latents >= 0)
    pick = csr_array(
        (np.ones(len(found)), (latents[found], found)), shape=(codes.shape[1], len(latents))
    )
    return truth.astype(np.float64), codes.astype(np.float64) @ pick


def _support(hits: np.ndarray, fired: np.ndarray, active: np.ndarray, empty: float) -> Support:
    """`empty` is the score of a unit where nothing is active and nothing fires."""

    def ratio(over: np.ndarray) -> Tensor:
        share = np.divide(hits, over, out=np.zeros_like(hits), where=over > 0)
        return torch.from_numpy(np.where(fired + active > 0, share, empty))

    return Support(ratio(fired), ratio(active), ratio((fired + active) / 2))
