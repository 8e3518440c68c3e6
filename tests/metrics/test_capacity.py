"""Capacity of a dictionary against published values and its formulas."""

from __future__ import annotations

import math

import pytest
import torch

from sae.errors import UserError
from sae.metrics.capacity import capacity, effective_dimension, largest_k, statistical_dimension


@pytest.mark.parametrize(
    ("k", "F", "non_negative", "published"),
    [
        (3, 16, True, 6.3),
        (3, 16, False, 7.9),
        (10, 100, True, 26.5),
        (3, 32, True, 8.1),
        (4, 128, True, 15.4),
        (6, 256, True, 25.1),
    ],
)
def test_statistical_dimension_equals_published_values(k, F, non_negative, published):
    delta = statistical_dimension(k, F, non_negative=non_negative)
    assert delta == pytest.approx(published, abs=0.051)


@pytest.mark.parametrize("factor", [1, 2], ids=["non-negative", "signed"])
def test_statistical_dimension_minimizes_its_formula(factor):
    k, F, step = 5, 80, 1e-4
    u = torch.arange(0, 12, step, dtype=torch.float64)
    phi = torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    values = [
        k * (1 + t * t) + (F - k) * factor * ((u - t).clamp(min=0) ** 2 * phi).sum().item() * step
        for t in torch.arange(0, 3, 0.01).tolist()
    ]
    assert statistical_dimension(k, F, non_negative=factor == 1) == pytest.approx(
        min(values), rel=1e-4
    )


@pytest.mark.parametrize("non_negative", [True, False])
def test_statistical_dimension_at_its_limits(non_negative):
    assert statistical_dimension(0, 64, non_negative=non_negative) == 0
    assert statistical_dimension(64, 64, non_negative=non_negative) == 64
    # The L0 is below 1, and the dictionary is as large as the largest in use.
    assert 0 < statistical_dimension(0.01, 2**20, non_negative=non_negative) < 1
    for k in (-1, 65):
        with pytest.raises(UserError, match="between 0 and the 64 latents"):
            statistical_dimension(k, 64, non_negative=non_negative)


@pytest.mark.parametrize(
    ("d", "ratio", "non_negative", "signed"),
    [
        (768, 16, 156, 126),
        (768, 32, 125, 105),
        (2304, 16, 468, 378),
        (2304, 32, 377, 315),
        (4096, 16, 832, 672),
        (4096, 32, 671, 560),
    ],
)
def test_largest_k_equals_the_published_table(d, ratio, non_negative, signed):
    assert largest_k(d, ratio * d) == non_negative
    assert largest_k(d, ratio * d, non_negative=False) == signed


def test_as_many_dimensions_as_atoms_allow_every_code():
    assert largest_k(64, 64) == largest_k(100, 64) == 64
    assert largest_k(0.5, 64) == 0


def test_effective_dimension_of_a_spectrum():
    assert effective_dimension(3 * torch.eye(7)) == pytest.approx(7)
    assert effective_dimension(torch.diag(torch.tensor([2.0, 2.0, 0.0]))) == pytest.approx(2)
    # The value is (1 + 3)^2 / (1 + 9), whatever the axes are.
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    C = turn @ torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)) @ turn.T
    assert effective_dimension(C) == pytest.approx(1.6)


def test_capacity_combines_its_parts():
    result = capacity(768, 12288, 32.5)
    assert result.delta == statistical_dimension(32.5, 12288)
    assert result.largest_k == 156
    assert result.margin == 768 / result.delta
    assert capacity(8, 16, 3, non_negative=False).margin == pytest.approx(8 / 7.9, abs=0.01)
    assert capacity(8, 16, 0).margin == math.inf
