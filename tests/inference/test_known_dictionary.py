"""Test the known-dictionary benchmark on published data: the parts that need no training."""

from __future__ import annotations

import pytest
import torch

from benchmarks.science.known_dictionary import SAMPLES, encoders, inference_methods, published_data
from sae.metrics.code_matching import code_mcc_absolute, exact_support_rate, match_codes_signed


@pytest.fixture(scope="module")
def scored():
    x, z, truth = published_data()
    result = {name: method() for name, method in inference_methods(x[SAMPLES:], truth).items()}
    return z[SAMPLES:], result


def test_published_data_have_16_features_3_of_them_active():
    x, z, truth = published_data()
    assert x.shape == (2048, 8) and (z > 0).sum(1).eq(3).all()
    torch.testing.assert_close(truth.norm(dim=1), torch.ones(16))
    assert (z > 0).double().mean(0).sub(3 / 16).abs().max() < 0.03
    assert z[z > 0].mean().item() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("FISTA", 0.985, 1.0),
        ("FISTA, 3 largest, refit", 0.985, 1.0),
        ("FISTA, negative codes allowed", 0.92, 0.95),
        ("orthogonal matching pursuit", 0.93, 0.95),
        ("gradient pursuit", 0.91, 0.93),
        ("matching pursuit", 0.90, 0.92),
        ("matching pursuit, refined", 0.945, 1.0),
    ],
)
def test_code_mcc_is_in_the_expected_range(scored, name, low, high):
    z, result = scored
    assert low <= code_mcc_absolute(z, result[name].codes) <= high


def test_refit_recovers_nine_of_ten_supports(scored):
    z, result = scored
    codes = result["FISTA, 3 largest, refit"].codes
    assert exact_support_rate(z, codes, match_codes_signed(z, codes)) > 0.9


def test_encoders_learn_independently():
    x, z, truth = published_data()
    x, z = x[:64], z[:64]
    widths = [8, 16]
    error = lambda codes: (codes @ truth - x).square().mean((1, 2))
    before, after = (error(encoders(x, truth, widths, steps)(x)) for steps in (0, 300))
    assert before.shape == (5,) and (after < 0.5 * before).all()
    assert after.unique().numel() == 5
