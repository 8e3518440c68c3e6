"""Disentanglement, completeness and informativeness of codes (Eastwood & Williams 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.metrics.code_matching import samples_matrix
from sae_kernels.codes import Codes


@dataclass(frozen=True)
class DCI:
    """Results of regressing every true feature on all latents.

    Attributes:
        importances: R, the importance of latent j for predicting active feature i, float64
            [a, d_sae].
        disentanglement: 1 - entropy of each latent's column of R over features, float64 [d_sae];
            NaN for a latent without importance.
        weights: each column's share of R, the weight of its latent in the mean, float64 [d_sae].
        completeness: 1 - entropy of each feature's row of R over latents, float64 [a]; 0 for an
            empty row.
        error: root mean squared error on samples not fitted, over the standard deviation, float64
            [a]. 0 is perfect, 1 is what the mean gets.
        inactive: number of features left out because they do not vary in both halves of the
            samples.
    """

    importances: Tensor
    disentanglement: Tensor
    weights: Tensor
    completeness: Tensor
    error: Tensor
    inactive: int

    def mean_disentanglement(self) -> float:
        """Return D, the mean over latents weighted by importance; NaN without any importance."""
        counts = self.weights > 0
        if not counts.any():
            return math.nan
        return (self.weights * self.disentanglement)[counts].sum().item()

    def mean_completeness(self) -> float:
        """Return C, the mean completeness over features."""
        return self.completeness.mean().item()

    def mean_error(self) -> float:
        """Return I, the mean relative error of prediction over features."""
        return self.error.mean().item()


def dci(
    z: Tensor | Codes,
    z_hat: Tensor | Codes,
    *,
    importance: Literal["lasso", "trees"] = "lasso",
    penalty: float = 0.01,
    seed: int = 0,
) -> DCI:
    """Regress each true feature of z [n, features] on all latents of z_hat [n, d_sae].

    A random half of the samples is fitted and the other half predicted. The chance level is
    `code_chance` of any of the three means.

    Args:
        z: true codes.
        z_hat: the SAE's codes.
        importance: with "lasso", importances are absolute coefficients of standardised variables.
            With "trees" they come from gradient-boosted trees, which also capture non-linear
            relations, at about a hundred times the cost.
        penalty: of the lasso, in units of the feature's standard deviation.
        seed: seed of the split.
    """
    # Imported here: the list of metrics is read at the start of every run, and scikit-learn is slow
    # to import.
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import Lasso

    truth, codes = samples_matrix(z).toarray(), samples_matrix(z_hat).toarray()
    order = np.random.default_rng(seed).permutation(len(truth))
    fit, test = order[: len(order) // 2], order[len(order) // 2 :]
    varies = (np.ptp(truth[fit], axis=0) > 0) & (np.ptp(truth[test], axis=0) > 0)
    alive = np.flatnonzero(np.ptp(codes[fit], axis=0))
    truth, X = truth[:, varies], _standardised(codes[:, alive], fit)
    Y = _standardised(truth, fit)
    R, errors = np.zeros((truth.shape[1], codes.shape[1])), np.ones(truth.shape[1])
    gram = X[fit].T @ X[fit]
    for i in range(len(R) if len(alive) else 0):
        if importance == "lasso":
            gram_option: Any = gram  # scikit-learn declares a bool and takes a matrix too
            model = Lasso(penalty, precompute=gram_option).fit(X[fit], Y[fit, i])
            R[i, alive] = abs(model.coef_)
        else:
            model = GradientBoostingRegressor(random_state=seed).fit(X[fit], Y[fit, i])
            R[i, alive] = model.feature_importances_
        residual = Y[test, i] - model.predict(X[test])
        errors[i] = np.sqrt(np.mean(residual**2)) / Y[test, i].std()
    disentanglement, weights, completeness = disentanglement_completeness(torch.from_numpy(R))
    return DCI(
        torch.from_numpy(R),
        disentanglement,
        weights,
        completeness,
        torch.from_numpy(errors),
        int((~varies).sum()),
    )


def disentanglement_completeness(R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return disentanglement and weight of each latent and completeness of each feature.

    For importances R [F, m] these are 1 - H_F(P_.j), rho_j = sum_i R_ij / sum R, and
    1 - H_m(P_i.), where P_.j is column j of R over its sum, P_i. row i over its sum, and H_b the
    entropy with logarithms to base b.
    """
    R = R.double()
    columns, rows = R.sum(0), R.sum(1)
    disentanglement = torch.where(columns > 0, 1 - _entropy(R.T), math.nan)
    completeness = torch.where(rows > 0, 1 - _entropy(R), 0.0)
    return disentanglement, columns / columns.sum().clamp_min(1e-300), completeness


def _entropy(weights: Tensor) -> Tensor:
    """Return the entropy of each row of `weights` over its sum, from 0 to 1."""
    p = weights / weights.sum(1, keepdim=True).clamp_min(1e-300)
    return torch.special.entr(p).sum(1) / math.log(max(p.shape[1], 2))


def _standardised(x: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Return x with columns of mean 0 and standard deviation 1 on the samples `fit`."""
    return (x - x[fit].mean(0)) / x[fit].std(0)
