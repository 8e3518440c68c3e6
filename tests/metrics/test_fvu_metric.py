"""Held-out FVU against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sae.metrics.fvu import FVU


def fvu(x, x_hat, batch):
    metric = FVU(x.shape[1])
    for rows, rows_hat in zip(x.split(batch), x_hat.split(batch), strict=True):
        metric.update(rows, rows_hat)
    return metric


def by_definition(x, x_hat):
    x, x_hat = x.double(), x_hat.double()
    return ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 12, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(0.1, 5, 12) + torch.randn(12, generator=generator)
    return x, x + 0.4 * torch.randn(1000, 12, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_fvu_of_three_rows_equals_value_worked_out_by_hand(scale):
    # The means are 2 and 0. The sum of |x - mean|^2 is (1 + 9) + 0 + (1 + 9) = 20, and the sum of
    # |x - x_hat|^2 is 1 + 0 + 4.
    x = torch.tensor([[1.0, 3], [2, 0], [3, -3]])
    x_hat = torch.tensor([[1.0, 2], [2, 0], [5, -3]])
    assert fvu(scale * x, scale * x_hat, 2).compute() == pytest.approx(5 / 20)


@pytest.mark.parametrize("batch", [1, 7, 256, 1000])
def test_fvu_is_a_ratio_of_global_sums_for_any_batch_size(data, batch):
    metric = fvu(*data, batch)
    assert metric.compute() == pytest.approx(by_definition(*data), rel=1e-12)
    torch.testing.assert_close(metric.mean, data[0].mean(0))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1, 10.0, 1e4])
def test_fvu_does_not_depend_on_the_scale(data, scale):
    x, x_hat = data
    assert fvu(scale * x, scale * x_hat, 64).compute() == pytest.approx(
        fvu(x, x_hat, 64).compute(), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_mean_costs_no_digits(data, dtype):
    x, x_hat = ((1000 * t.std() + t).to(dtype) for t in data)
    assert fvu(x, x_hat, 32).compute() == pytest.approx(by_definition(x, x_hat), rel=1e-9)


def test_fvu_counts_variance_between_batches(data):
    # The variance is between the batches, so a mean of ratios per batch would miss it.
    x = torch.cat([data[0] - 100, data[0] + 100])
    x_hat = torch.cat([data[1] - 100, data[1] + 100])
    assert fvu(x, x_hat, 1000).compute() == pytest.approx(by_definition(x, x_hat), rel=1e-12)


def test_the_mean_scores_one_a_copy_scores_zero_and_no_variance_scores_nan(data):
    x, _ = data
    assert fvu(x, x.mean(0).expand_as(x), 100).compute() == pytest.approx(1, rel=1e-12)
    assert fvu(x, x, 100).compute() == 0
    assert math.isnan(fvu(torch.ones(4, 3), torch.zeros(4, 3), 4).compute())


def test_empty_batches_change_nothing(data):
    metric = fvu(*data, 100)
    before = metric.compute()
    metric.update(torch.empty(0, 12), torch.empty(0, 12))
    assert metric.compute() == before
