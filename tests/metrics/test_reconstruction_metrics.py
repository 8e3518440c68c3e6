"""Reconstruction metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sae.metrics.reconstruction import Cosine, RelativeReconstructionBias, Shrinkage


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator) * torch.linspace(0.1, 9, 50)[:, None]
    return x, x + torch.randn(50, 8, generator=generator)


def run(metric, x, x_hat):
    for rows, rows_hat in zip(x.split(13), x_hat.split(13), strict=True):
        metric.update(rows, rows_hat)
    return metric.compute()


def test_reconstruction_metrics_of_two_rows_worked_out_by_hand():
    x = torch.tensor([[3.0, 4], [0, 1]])
    x_hat = torch.tensor([[0.0, 4], [1, 1]])
    # |x| is 5 and 1, |x_hat| is 4 and sqrt(2), x . x_hat is 16 and 1, and |x_hat|^2 is 16 and 2.
    assert run(Shrinkage(), x, x_hat) == pytest.approx((4 + 2**0.5) / 6)
    assert run(Cosine(), x, x_hat) == pytest.approx((16 / 20 + 1 / 2**0.5) / 2)
    assert run(RelativeReconstructionBias(), x, x_hat) == pytest.approx(18 / 17)
    assert run(RelativeReconstructionBias(), x, 0.25 * x) == pytest.approx(0.25)
    assert math.isnan(run(RelativeReconstructionBias(), x, 0 * x))
    assert math.isnan(run(Shrinkage(), 0 * x, x))


def test_best_factor_removes_the_reconstruction_bias(data):
    x, x_hat = data
    bias = run(RelativeReconstructionBias(), x, x_hat)
    best = torch.linalg.lstsq(x_hat.reshape(-1, 1), x.reshape(-1, 1)).solution.item()
    assert 1 / bias == pytest.approx(best, rel=1e-5)


def test_shrinkage_is_a_ratio_of_means(data):
    x, x_hat = data
    expected = x_hat.norm(dim=1).mean() / x.norm(dim=1).mean()
    assert run(Shrinkage(), x, x_hat) == pytest.approx(expected.item(), rel=1e-6)
    assert run(Shrinkage(), x, 0.25 * x) == pytest.approx(0.25, rel=1e-6)


def test_cosine_is_a_mean_over_rows(data):
    x, x_hat = data
    expected = ((x * x_hat).sum(1) / (x.norm(dim=1) * x_hat.norm(dim=1))).mean()
    assert run(Cosine(), x, x_hat) == pytest.approx(expected.item(), rel=1e-6)
    assert run(Cosine(), x, -3 * x) == pytest.approx(-1, rel=1e-6)


def test_a_row_of_zeros_has_cosine_zero(data):
    x, _ = data
    assert run(Cosine(), x, torch.cat([x[:25], torch.zeros(25, 8)])) == pytest.approx(0.5)
