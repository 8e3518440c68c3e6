"""DCI scores against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from sae.metrics.dci import DCI, dci, disentanglement_completeness


def codes(n=400, features=3, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed)).abs()


def test_dci_entropies_equal_values_worked_out_by_hand():
    # Importances of four latents for two features. Latent 0 is as important for either, 1 only for
    # the first, 2 for none, and 3 is three times as important for the first. Feature 0 has the
    # shares 1/2, 1/4, 0, 1/4 and feature 1 has 6/7, 0, 0, 1/7.
    R = torch.tensor([[4.0, 2, 0, 2], [4, 0, 0, 1]])
    R[1, 3] = 2 / 3
    disentanglement, weights, completeness = disentanglement_completeness(R)
    binary = lambda p: -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    assert disentanglement[[0, 1, 3]].tolist() == pytest.approx([0, 1, 1 - binary(0.25)])
    assert math.isnan(disentanglement[2])
    assert weights.tolist() == pytest.approx([x / (38 / 3) for x in (8, 2, 0, 8 / 3)])
    # Entropies have base 4, the number of latents, so 1.5 bits count as 3/4.
    assert completeness.tolist() == pytest.approx([1 - 1.5 / 2, 1 - binary(6 / 7) / 2])
    assert disentanglement_completeness(torch.tensor([[0.0, 0], [0, 3]]))[2].tolist() == [0, 1]


def test_disentanglement_weights_latents_by_importance():
    tensor = lambda *values: torch.tensor(values, dtype=torch.float64)
    scores = DCI(
        torch.zeros(2, 3),
        tensor(0.5, math.nan, 1),
        tensor(0.75, 0, 0.25),
        tensor(1, 0),
        tensor(2),
        0,
    )
    assert scores.mean_disentanglement() == 0.5 * 0.75 + 0.25
    assert scores.mean_completeness() == 0.5 and scores.mean_error() == 2


@pytest.mark.parametrize("importance", ["lasso", "trees"])
def test_permuted_scaled_copy_is_perfect_and_mixture_is_not(importance):
    z = codes()
    scores = dci(z, torch.cat([z[:, [2, 0, 1]] * 5, torch.zeros(400, 2)], 1), importance=importance)
    assert scores.importances.argmax(1).tolist() == [1, 2, 0]
    assert scores.mean_disentanglement() > 0.95 and scores.mean_completeness() > 0.95
    assert scores.mean_error() < (0.02 if importance == "lasso" else 0.2)
    mixed = dci(z, z @ torch.tensor([[1.0, 1, 1], [1, 1, -1], [1, -1, -1]]), importance=importance)
    assert mixed.mean_disentanglement() < 0.6 and mixed.mean_completeness() < 0.7
    noise = dci(z, codes(seed=1), importance=importance)
    assert 0.95 < noise.mean_error() < 1.3


def test_lasso_follows_its_definition():
    # For one standardised latent, the lasso coefficient is the correlation minus the penalty.
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1000, 1, generator=generator, dtype=torch.float64)
    z_hat = 3 * z + torch.randn(1000, 1, generator=generator, dtype=torch.float64)
    scores = dci(z, z_hat, penalty=0.25)
    assert scores.importances.item() == pytest.approx(3 / 10**0.5 - 0.25, abs=0.02)
    # With coefficient b and correlation r, the squared error is 1 - 2 b r + b^2.
    b, r = scores.importances.item(), 3 / 10**0.5
    assert scores.error.item() ** 2 == pytest.approx(1 - 2 * b * r + b * b, abs=0.02)
    assert dci(z, z_hat, penalty=0.25).error.item() == scores.error.item()
    assert dci(z, z_hat, penalty=0.25, seed=1).error.item() != scores.error.item()


def test_constant_features_are_left_out_and_empty_codes_predict_nothing():
    z = codes(100)
    z[:, 1] = 0
    z[0, 2], z[1:, 2] = 1, 0  # varies in one half only
    scores = dci(z, z)
    assert scores.inactive == 2 and len(scores.completeness) == 1
    nothing = dci(z, torch.zeros(100, 4))
    assert nothing.error.tolist() == [1] and nothing.mean_completeness() == 0
    assert math.isnan(nothing.mean_disentanglement())
