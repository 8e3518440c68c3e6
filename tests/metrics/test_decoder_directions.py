"""Metrics of decoder directions against values worked out by hand."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from sae.metrics.decoder_directions import (
    c_dec,
    c_dec_chance,
    c_dec_of_latents,
    dictionary_chance,
    dictionary_mcc_chance,
    dictionary_mcc_nulls,
    dictionary_mcc_signed,
    matched_cosines_signed,
    mmcs,
    mmcs_of_latents,
    mmcs_uniqueness,
    s_n,
    uniqueness_of_latents,
)


def unit(rows, width, seed):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("d_sae", "features"), [(5, 5), (6, 4), (4, 6)], ids=str)
def test_mcc_uses_the_optimal_assignment(d_sae, features):
    W_dec, truth = unit(d_sae, 3, 0), unit(features, 3, 1)
    cosines = (truth @ W_dec.T).double()
    if d_sae < features:
        cosines = cosines.T
    best = max(
        sum(cosines[i, j].item() for i, j in enumerate(chosen))
        for chosen in permutations(range(cosines.shape[1]), len(cosines))
    )
    assert dictionary_mcc_signed(W_dec, truth) == pytest.approx(best / features, abs=1e-6)


def test_permuted_scaled_copy_scores_one_and_its_negative_does_not():
    truth = unit(16, 8, 0)
    W_dec = truth[torch.randperm(16)] * torch.linspace(0.1, 9, 16)[:, None]
    assert dictionary_mcc_signed(W_dec, truth) == pytest.approx(1, abs=1e-6)
    assert dictionary_mcc_signed(-torch.eye(8), torch.eye(8)) == 0


def test_features_without_a_latent_count_zero():
    truth = torch.eye(8)
    assert dictionary_mcc_signed(truth[:6], truth) == 0.75
    assert dictionary_mcc_signed(torch.cat([truth[:6], torch.zeros(4, 8)]), truth) == 0.75


@pytest.mark.parametrize(("features", "width", "expected"), [(16, 8, 0.519), (32, 16, 0.466)])
def test_chance_level(features, width, expected):
    levels = [dictionary_mcc_chance(unit(features, width, s), features, seed=s) for s in range(10)]
    assert sum(levels) / 10 == pytest.approx(expected, abs=0.02)
    assert levels[0] == dictionary_mcc_chance(unit(features, width, 0), features, seed=0)


def test_samples_with_one_active_feature_are_features():
    # The rows have the directions of the unit vectors in equal numbers. Their mean is 1/8 of the
    # length in each dimension, so a centred row has the cosine (1 - 1/8) / sqrt(1 - 1/8).
    truth, samples = torch.eye(8), 3 * torch.eye(8).repeat(4, 1)
    expected = (7 / 8) ** 0.5
    assert dictionary_mcc_chance(truth, 32, samples=samples) == pytest.approx(expected)
    assert dictionary_mcc_chance(truth, 32, samples=samples + 5) == pytest.approx(expected)
    nulls = dictionary_mcc_nulls(truth, 32, samples)
    assert nulls["dictionary_mcc_samples"] == pytest.approx(expected)
    assert nulls["dictionary_mcc_random"] == dictionary_mcc_chance(truth, 32)
    assert nulls["dictionary_mcc_signed_chance"] == nulls["dictionary_mcc_samples"]
    assert dictionary_mcc_nulls(truth, 32, samples) == nulls


def test_random_directions_are_the_chance_level_above_samples():
    nulls = dictionary_mcc_nulls(torch.eye(8), 32, torch.ones(40, 8))  # all samples are their mean
    assert nulls["dictionary_mcc_samples"] == 0
    assert nulls["dictionary_mcc_signed_chance"] == nulls["dictionary_mcc_random"] > 0.5


def test_mmcs_lets_features_share_a_latent():
    truth = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    W_dec = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert mmcs(W_dec, truth) == pytest.approx((1 + 0.8 + 0) / 3)
    assert mmcs_uniqueness(W_dec, truth) == 0.5
    # All three latents are nearest to the first feature, although two features have different
    # nearest latents.
    W_dec = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.95, 0.05]])
    assert mmcs_uniqueness(W_dec, truth) == pytest.approx(1 / 3)
    assert mmcs_uniqueness(truth, truth) == 1


def test_mmcs_of_latents_is_a_precision():
    # One latent equals a feature, and the other is at 45 degrees to its nearest feature.
    W_dec = torch.tensor([[2.0, 0, 0], [1, 1, 0]])
    assert mmcs_of_latents(W_dec, torch.eye(3)) == pytest.approx((1 + 0.5**0.5) / 2)


def test_c_dec_is_the_mean_over_pairs(monkeypatch):
    # The unit rows are (1, 0), (-.6, .8) and (0, -1), with |cos| of .6, 0 and .8 between pairs.
    W_dec = torch.tensor([[1.0, 0], [-3, 4], [0, -2]])
    assert c_dec(W_dec) == pytest.approx(1.4 / 3)
    assert c_dec(torch.eye(5)) == 0
    random = unit(100, 64, 0)
    level = c_dec(random)
    assert level == pytest.approx((2 / torch.pi / 64) ** 0.5, rel=0.03)
    monkeypatch.setattr("sae.metrics.decoder_directions._ROWS", 7)
    assert c_dec(random) == pytest.approx(level, abs=1e-12)


def test_s_n_is_the_nth_largest_projection_per_row():
    x, b_dec = torch.tensor([[2.0, 1], [4, 5]]), torch.tensor([1.0, 1])
    # The rows of x - b_dec are (1, 0) and (3, 4). Their projections on the unit rows (1, 0), (0, 1)
    # and (.6, .8) are 1, 0, .6 and 3, 4, 5.
    W_dec = torch.tensor([[1.0, 0], [0, 7], [3, 4]])
    values = [s_n(x, W_dec, b_dec, n) for n in range(3)]
    assert values == pytest.approx([5, 3, 0.6])  # numbers 0, 2 and 4 of 5, 4, 3, 1, .6, 0


def test_scores_are_means_of_their_units():
    truth = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    W_dec = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    # The features (1, 0) and (0, 1) are matched with a cosine of 1. That leaves no latent for (.8,
    # .6), which would gain only .6 or .8.
    assert matched_cosines_signed(W_dec, truth).tolist() == pytest.approx([1, 0, 1])
    # Feature 0 is nearest to two latents, and feature 2 to one.
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.99, 0.1]])
    assert uniqueness_of_latents(W_dec, truth).tolist() == [0.5, 1, 0.5]
    W_dec = torch.tensor([[1.0, 0], [-3, 4], [0, -2]])  # |cos| .6, 0 and .8
    assert c_dec_of_latents(W_dec).tolist() == pytest.approx([0.3, 0.7, 0.4])


def test_dictionary_chance_averages_random_decoders():
    truth, seen = unit(6, 4, 0), []

    def score(W_dec, features):
        seen.append(W_dec)
        assert features is truth
        return float(len(seen))

    assert dictionary_chance(score, truth, 9, draws=3) == 2
    assert [tuple(W_dec.shape) for W_dec in seen] == [(9, 4)] * 3
    assert not torch.equal(seen[0], seen[1])
    seen.clear()
    samples = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    dictionary_chance(score, truth, 9, samples=samples, draws=2)
    centred = (samples - samples.mean(0)).tolist()
    drawn = [[centred.index(row) for row in W_dec.tolist()] for W_dec in seen]
    assert [len(set(rows)) for rows in drawn] == [9, 9] and drawn[0] != drawn[1]
    assert dictionary_chance(mmcs, truth, 9) > dictionary_mcc_chance(truth, 9)
    assert c_dec_chance(64) == pytest.approx(c_dec(unit(1000, 64, 0)), rel=0.01)
