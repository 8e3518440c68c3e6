"""Matching of latents with features against values worked out by hand."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from sae.errors import UserError
from sae.metrics.code_matching import (
    code_chance,
    code_mcc_absolute,
    code_mcc_signed,
    exact_support_rate,
    match_codes_absolute,
    match_codes_signed,
    samples_matrix,
    support_per_matched_latent,
    support_per_sample,
)
from sae_kernels.codes import Codes

# Two features on four samples. Both means are 1/2, so the centred features are (1, 1, -1, -1) / 2
# and (1, -1, 1, -1) / 2, which are orthogonal.
A, B = torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 0, 1, 0])


def stacked(*columns):
    return torch.stack(columns, dim=1)


def ragged(dense, padding=0):
    """Return a dense array as `Codes` without explicit zeros, with `padding` unused slots."""
    rows, indices = dense.nonzero(as_tuple=True)
    offsets = torch.bincount(rows, minlength=len(dense)).cumsum(0)
    values = torch.cat([dense[rows, indices], torch.full((padding,), 7.0)])
    indices = torch.cat([indices, torch.zeros(padding, dtype=torch.int64)])
    return Codes(values, indices, dense.shape[1], torch.nn.functional.pad(offsets, (1, 0)))


def test_code_mcc_equals_value_worked_out_by_hand():
    z = stacked(A, B)
    # Latent 0 is 3 - 2 A: its Pearson correlation is -1 with A and 0 with B. Latent 1 is B + A / 2,
    # centred (3, -1, 1, -3) / 4. Its correlation with B, centred (2, -2, 2, -2) / 4, is
    # 16 / sqrt(20 * 16) = 2 / sqrt(5), and with A it is 1 / sqrt(5).
    z_hat = stacked(3 - 2 * A, B + A / 2)
    assert code_mcc_absolute(z, z_hat) == pytest.approx((1 + 2 / 5**0.5) / 2)
    assert code_mcc_signed(z, z_hat) == pytest.approx((0 + 2 / 5**0.5) / 2)
    assert match_codes_absolute(z, z_hat).latents.tolist() == [0, 1]
    assert match_codes_signed(z, z_hat).latents.tolist() == [-1, 1]


def test_inactive_features_are_left_out_and_unmatched_or_constant_count_zero():
    nothing, always = torch.zeros(4), torch.full((4,), 1 / 3)
    z = stacked(nothing, A, B, always)
    matching = match_codes_absolute(z, stacked(always, 2 * B, nothing))
    assert matching.inactive == 1
    assert matching.features.tolist() == [1, 2, 3]
    assert matching.latents.tolist() == [-1, 1, -1]
    assert matching.correlations.tolist() == pytest.approx([0, 1, 0])
    assert matching.mean() == pytest.approx(1 / 3)
    assert math.isnan(code_mcc_absolute(stacked(nothing), stacked(A)))


@pytest.mark.parametrize(("features", "d_sae"), [(4, 4), (3, 6), (6, 3)], ids=str)
def test_matching_is_optimal_for_numpy_correlations(features, d_sae):
    generator = torch.Generator().manual_seed(features)
    z = torch.randn(40, features, generator=generator).clamp(min=0)
    z_hat = torch.randn(40, d_sae, generator=generator).clamp(min=0) + 0.4 * z[:, [0] * d_sae]
    pearson = np.corrcoef(z.T.double(), z_hat.T.double())[:features, features:]
    for score, gains in ((code_mcc_absolute, abs(pearson)), (code_mcc_signed, pearson.clip(0))):
        table = gains if features <= d_sae else gains.T
        best = max(
            sum(table[i, j] for i, j in enumerate(chosen))
            for chosen in permutations(range(table.shape[1]), len(table))
        )
        assert score(z, z_hat) == pytest.approx(best / features, abs=1e-12)
        assert score(ragged(z), ragged(z_hat, padding=5)) == pytest.approx(best / features)


def test_codes_with_empty_slots_and_repeated_latents_equal_dense_codes():
    values = torch.tensor([[1.0, 0.5], [2.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    indices = torch.tensor([[1, 1], [0, 1], [1, 0], [1, 0]])  # row 0 has latent 1 twice: 1 + 0.5
    codes = Codes(values, indices, 2)
    z = torch.tensor([[0.2, 1], [1, 0], [0, 0.3], [0, 1.2]])
    for truth, other in ((z, codes), (codes, z)):
        dense = [x.to_dense() if isinstance(x, Codes) else x for x in (truth, other)]
        assert code_mcc_signed(truth, other) == pytest.approx(code_mcc_signed(*dense))
        pearson = np.corrcoef(dense[0].T, dense[1].T)[[0, 1], [2, 3]]
        assert code_mcc_signed(*dense) == pytest.approx(pearson.mean())


def test_repeated_latent_fires_by_the_sum_of_its_values():
    codes = Codes(torch.tensor([[0.6, 0.6], [0, 0]]), torch.tensor([[0, 0], [0, 0]]), 1)
    z = torch.tensor([[1.0], [0]])
    assert samples_matrix(codes).nnz == 1
    assert support_per_sample(z, codes, match_codes_signed(z, codes), eps=1.0).f1.tolist() == [1, 1]


@pytest.mark.parametrize("n", [7, 10, 1000])
def test_column_constant_up_to_rounding_has_no_correlation(n):
    constant, varying = torch.full((n,), 0.1, dtype=torch.float64), torch.arange(n).double()
    assert match_codes_absolute(stacked(varying), stacked(constant)).latents.tolist() == [-1]
    assert match_codes_absolute(stacked(constant), stacked(varying)).latents.tolist() == [-1]


def test_chance_is_the_score_of_shuffled_samples():
    z = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)).clamp(min=0)
    chance = code_chance(code_mcc_absolute, z, 2 * z, draws=3, seed=1)
    assert code_mcc_absolute(z, 2 * z) == pytest.approx(1)
    # |Pearson| is 0.04 on average over 400 samples; the best of 12 is larger.
    assert 0.03 < chance < 0.12
    assert chance == code_chance(code_mcc_absolute, z, ragged(2 * z), draws=3, seed=1)
    assert chance != code_chance(code_mcc_absolute, z, 2 * z, draws=3, seed=2)


def test_support_scores_equal_counts_by_hand():
    z = torch.tensor([[1.0, 0], [1, 1], [0, 1], [0, 0], [1, 0]])
    z_hat = torch.tensor([[0, 3.0, 0.01], [1, 2, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]])
    matching = match_codes_signed(z, z_hat)
    assert matching.latents.tolist() == [1, 0]
    # Feature 0 is active on samples 0, 1, 4 and its latent 1 fires on 0, 1; feature 1 is perfect.
    latents = support_per_matched_latent(z, z_hat, matching)
    assert latents.precision.tolist() == [1, 1]
    assert latents.recall.tolist() == pytest.approx([2 / 3, 1])
    assert latents.f1.tolist() == pytest.approx([0.8, 1])
    # Latent 2 is matched to no feature. It fires weakly on sample 0, and alone on sample 4.
    samples = support_per_sample(z, ragged(z_hat), matching)
    assert samples.precision.tolist() == [0.5, 1, 1, 1, 0]
    assert samples.recall.tolist() == [1, 1, 1, 1, 0]
    assert samples.f1.tolist() == pytest.approx([2 / 3, 1, 1, 1, 0])
    assert exact_support_rate(z, z_hat, matching) == pytest.approx(3 / 5)
    assert exact_support_rate(z, z_hat, matching, eps=0.1) == pytest.approx(4 / 5)
    above = support_per_matched_latent(z, z_hat, matching, eps=2.0)
    assert above.recall.tolist() == pytest.approx([1 / 3, 0])


def test_feature_without_latent_has_zero_support():
    z = stacked(A, B)
    matching = match_codes_absolute(z, stacked(B))
    scores = support_per_matched_latent(z, stacked(B), matching)
    assert scores.precision.tolist() == scores.recall.tolist() == scores.f1.tolist() == [0, 1]


def test_matching_refuses_different_numbers_of_samples():
    with pytest.raises(UserError, match="z has 4 samples and z_hat has 3"):
        code_mcc_absolute(stacked(A, B), stacked(A, B)[:3])
