"""Match latents to true features by their codes, and measure how well the codes agree.

Shapes: z [n, features] are the true codes and z_hat [n, d_sae] the SAE's codes of the same n
samples, each either dense or a `Codes`. Everything works on the non-zero values, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from torch import Tensor

from sae.errors import UserError
from sae_kernels.codes import Codes

SparseMatrix: TypeAlias = Any
"""A scipy `csr_array` [n, columns]; scipy declares its shape as optional, which it never is."""

# A column whose variance is a smaller share of its mean square counts as constant: rounding.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class CodeMatching:
    """The latent assigned to each true feature that is active in some sample.

    Attributes:
        features: the active features, int64 [a], ascending.
        latents: the latent assigned to each, int64 [a]; -1 for none.
        correlations: Pearson correlation of each pair over the samples, float64 [a]; 0 for none.
        inactive: number of features that are 0 on every sample. They cannot be matched and are left
            out, so report this number beside every score.
    """

    features: Tensor
    latents: Tensor
    correlations: Tensor
    inactive: int

    def mean(self) -> float:
        """Return the code MCC: the mean correlation over active features; NaN if none is active."""
        return self.correlations.mean().item()


def match_codes_absolute(z: Tensor | Codes, z_hat: Tensor | Codes) -> CodeMatching:
    """Return the assignment (Hungarian) with the largest sum of |Pearson|.

    Each latent is assigned to at most one feature. A constant column has correlation 0 with
    everything and is never assigned. The `correlations` of the result are absolute.

    Raises:
        UserError: z and z_hat differ in their number of samples.
    """
    return _match(z, z_hat, np.abs)


def match_codes_signed(z: Tensor | Codes, z_hat: Tensor | Codes) -> CodeMatching:
    """Return the assignment with the largest sum of signed Pearson correlations, for z >= 0.

    A latent that falls as the feature rises is no match: such a feature gets no latent, so no
    correlation is below 0.
    """
    return _match(z, z_hat, lambda correlations: correlations.clip(min=0))


def code_mcc_absolute(z: Tensor | Codes, z_hat: Tensor | Codes) -> float:
    """Return the mean over active true features of |Pearson(z_i, z_hat_j)|, j by Hungarian.

    Features without a latent and constant columns count as 0. O'Neill et al. (arXiv 2411.13117)
    use this where widths agree; where they differ they match greedily, which gives higher values.
    The chance level is `code_chance(code_mcc_absolute, z, z_hat)`, far from 0 for few samples.
    """
    return match_codes_absolute(z, z_hat).mean()


def code_mcc_signed(z: Tensor | Codes, z_hat: Tensor | Codes) -> float:
    """Return `code_mcc_absolute` with signed Pearson; use it where z >= 0 and z_hat >= 0."""
    return match_codes_signed(z, z_hat).mean()


def code_chance(
    score: Callable[[Codes | Tensor, Codes | Tensor], float],
    z: Tensor | Codes,
    z_hat: Tensor | Codes,
    *,
    draws: int = 2,
    seed: int = 0,
) -> float:
    """Return the mean of score(z, z_hat) over `draws` shuffles of z_hat's samples.

    Shuffling keeps the values of every column and the latents of every sample, and removes only
    their relation to z.
    """
    generator = np.random.default_rng(seed)
    matrix = samples_matrix(z_hat)
    scores = [
        score(z, as_codes(matrix[generator.permutation(matrix.shape[0])])) for _ in range(draws)
    ]
    return sum(scores) / draws


@dataclass(frozen=True)
class Support:
    """Precision, recall and F1 of which entries are active, float64 [units] each."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


def support_per_matched_latent(
    z: Tensor | Codes, z_hat: Tensor | Codes, matching: CodeMatching, *, eps: float = 0.0
) -> Support:
    """Compare, for each active feature, where it is active (z != 0) and where its latent fires.

    A latent fires where |z_hat| > eps. With TP the number of samples where both are active,
    precision is TP / fired, recall TP / active, and F1 their harmonic mean; all are 0 for a feature
    without a latent or with a latent that never fires.

    Returns:
        One value for each of `matching.features`. SAELens reports their mean.
    """
    truth, fired = _supports(z, z_hat, matching, eps)
    return _support(_sums(truth * fired, 0), _sums(fired, 0), _sums(truth, 0), empty=0.0)


def support_per_sample(
    z: Tensor | Codes, z_hat: Tensor | Codes, matching: CodeMatching, *, eps: float = 0.0
) -> Support:
    """Compare, for each sample, the latents that fire with those of the active features.

    A latent that is matched to no feature counts as wrong when it fires. A sample in which nothing
    is active and nothing fires scores 1 (Barin Pacela et al., arXiv 2603.28744).

    Returns:
        One value for each of the n samples.
    """
    truth, fired = _supports(z, z_hat, matching, eps)
    all_fired = _sums(abs(samples_matrix(z_hat)) > eps, 1)
    return _support(_sums(truth * fired, 1), all_fired, _sums(truth, 1), empty=1.0)


def exact_support_rate(
    z: Tensor | Codes, z_hat: Tensor | Codes, matching: CodeMatching, *, eps: float = 0.0
) -> float:
    """Return the share of samples in which exactly the latents of the active features fire."""
    return (support_per_sample(z, z_hat, matching, eps=eps).f1 == 1).double().mean().item()


def samples_matrix(z: Tensor | Codes) -> SparseMatrix:
    """Return z as a float64 sparse matrix [n, columns] without explicit zeros or duplicates."""
    if isinstance(z, Codes):
        starts = z.by_latent().row_starts.cpu().numpy()
        values = z.values.detach().flatten().double().cpu().numpy()[: starts[-1]]
        indices = z.indices.flatten().cpu().numpy()[: starts[-1]]
        # Copied, because the methods below work in place.
        matrix = csr_array((values, indices, starts), shape=(z.batch, z.d_sae), copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix
    return csr_array(z.detach().double().cpu().numpy())


def as_codes(matrix: SparseMatrix) -> Codes:
    """Return the ragged `Codes` of a sparse matrix, the inverse of `samples_matrix`."""
    return Codes(
        torch.from_numpy(matrix.data),
        torch.from_numpy(matrix.indices.astype(np.int64)),
        matrix.shape[1],
        torch.from_numpy(matrix.indptr.astype(np.int64)),
    )


def _sums(matrix: SparseMatrix, axis: int) -> np.ndarray:
    return np.asarray(matrix.sum(axis), dtype=np.float64).ravel()


def _mean_and_sd(matrix: SparseMatrix) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column; 0 for a constant column."""
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
        raise UserError(
            f"z has {n} samples and z_hat has {codes.shape[0]}; give codes of the same samples"
        )
    features = np.flatnonzero(_sums(truth != 0, 0))
    truth = truth[:, features]
    mean, sd = _mean_and_sd(truth)
    mean_hat, sd_hat = _mean_and_sd(codes)
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
) -> tuple[SparseMatrix, SparseMatrix]:
    """Return 0/1 matrices [n, a]: where each feature is active, and where its latent fires."""
    truth = samples_matrix(z)[:, matching.features.numpy()] != 0
    codes = abs(samples_matrix(z_hat)) > eps
    latents = matching.latents.numpy()
    matched = np.flatnonzero(latents >= 0)
    pick = csr_array(
        (np.ones(len(matched)), (latents[matched], matched)), shape=(codes.shape[1], len(latents))
    )
    return truth.astype(np.float64), codes.astype(np.float64) @ pick


def _support(hits: np.ndarray, fired: np.ndarray, active: np.ndarray, empty: float) -> Support:
    """Return precision, recall and F1; `empty` is the score where nothing is active or fires."""

    def ratio(over: np.ndarray) -> Tensor:
        share = np.divide(hits, over, out=np.zeros_like(hits), where=over > 0)
        return torch.from_numpy(np.where(fired + active > 0, share, empty))

    return Support(ratio(fired), ratio(active), ratio((fired + active) / 2))
