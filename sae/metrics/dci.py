"""Disentanglement, completeness and informativeness of codes (Eastwood & Williams 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import Lasso
from torch import Tensor

from sae.metrics.code_matching import samples_matrix
from sae_kernels.codes import Codes


@dataclass(frozen=True)
class DCI:
    """What regressions of every true feature on the latents say.

    importances R float64 [a, d_sae]: what latent j counts for in predicting active feature i.
    disentanglement float64 [d_sae]: 1 - entropy of a latent's column of R over features, NaN where
    it counts for nothing; weights [d_sae]: the column's share of R, by which it is averaged.
    completeness float64 [a]: 1 - entropy of a feature's row of R over latents, 0 for an empty row.
    error float64 [a]: root of the mean squared error on samples not fitted, over the standard
    deviation: 0 is perfect and 1 is what the mean gets. inactive: features left out, since they do
    not vary in both halves of the sample.
    """

    importances: Tensor
    disentanglement: Tensor
    weights: Tensor
    completeness: Tensor
    error: Tensor
    inactive: int

    def mean_disentanglement(self) -> float:
        """D: mean over latents, each by its share of all importance; NaN where there is none."""
        counts = self.weights > 0
        if not counts.any():
            return math.nan
        return (self.weights * self.disentanglement)[counts].sum().item()

    def mean_completeness(self) -> float:
        """C: mean over features."""
        return self.completeness.mean().item()

    def mean_error(self) -> float:
        """I: mean over features of the relative error of prediction."""
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

    Half of the samples, drawn at random, is fitted and the other half predicted. `lasso`:
    importances are |coefficients|, everything standardised, `penalty` in units of the feature's
    standard deviation. `trees`: the importances of gradient-boosted trees, which also see what is
    not linear, at some hundred times the cost. Chance: `code_chance` of any of the three means.
    """
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
            model = Lasso(penalty, precompute=gram).fit(X[fit], Y[fit, i])
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
    """1 - H_F(P_.j) and rho_j of each latent, and 1 - H_m(P_i.) of each feature, of R [F, m].

    P_.j is column j of R over its sum and P_i. row i over its; H_b is the entropy with logarithms
    to base b; rho_j = sum_i R_ij / sum R.
    """
    R = R.double()
    columns, rows = R.sum(0), R.sum(1)
    disentanglement = torch.where(columns > 0, 1 - _entropy(R.T), math.nan)
    completeness = torch.where(rows > 0, 1 - _entropy(R), 0.0)
    return disentanglement, columns / columns.sum().clamp_min(1e-300), completeness


def _entropy(weights: Tensor) -> Tensor:
    """Entropy of each row of `weights` over its sum, from 0 to 1."""
    p = weights / weights.sum(1, keepdim=True).clamp_min(1e-300)
    return torch.special.entr(p).sum(1) / math.log(max(p.shape[1], 2))


def _standardised(x: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1 on the samples `fit`."""
    return (x - x[fit].mean(0)) / x[fit].std(0)
