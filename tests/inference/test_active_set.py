"""Test the active-set lasso with the duality gap in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.inference import active_set, duality_gap
from sae.inference.active_set import active_set_codes

PENALTY = 0.3


@pytest.fixture
def problem(monkeypatch) -> tuple[Tensor, Tensor]:
    """Return x [50, 12] and D [40, 12]; chunks have 16 rows, and 3 atoms join in a round."""
    monkeypatch.setitem(active_set.ROWS_PER_CHUNK, "cpu", 16)
    monkeypatch.setattr(active_set, "ATOMS_PER_ROUND", 3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    D = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    x[7] = 0  # needs no atom
    return x, normalize(D, dim=1)


def test_rounds_lower_the_objective_of_every_row_to_its_minimum(problem):
    x, D = problem
    before, _ = duality_gap(x, torch.zeros(50, 40, dtype=x.dtype), D, PENALTY)
    for rounds in range(1, 4):
        objective, gap = duality_gap(x, active_set_codes(x, D, PENALTY, rounds), D, PENALTY)
        assert (objective <= before + 1e-12).all()
        assert gap.max() > 1e-3  # a few rounds are not enough for every row
        before = objective
    z = active_set_codes(x, D, PENALTY, 30)
    objective, gap = duality_gap(x, z, D, PENALTY)
    assert (gap <= 1e-9).all()
    assert (z >= 0).all() and not z[7].any() and (z[:7] > 0).sum(1).min() > 3


def test_a_start_continues_from_earlier_rounds(problem):
    x, D = problem
    two = active_set_codes(x, D, PENALTY, 2)
    continued = active_set_codes(x, D, PENALTY, 3, start=two)
    torch.testing.assert_close(continued, active_set_codes(x, D, PENALTY, 5), atol=1e-10, rtol=0)
    best = active_set_codes(x, D, PENALTY, 30)
    torch.testing.assert_close(
        active_set_codes(x, D, PENALTY, 1, start=best), best, atol=1e-9, rtol=0
    )


def test_a_round_adds_the_best_atoms_and_fits_them_exactly(problem):
    """With orthogonal atoms the solution is relu(correlation - penalty) of the three best."""
    x = problem[0]
    D = torch.eye(12, dtype=torch.float64)
    expected = (x - PENALTY).relu()
    best = expected.topk(3, dim=1)
    first = torch.zeros_like(x).scatter_(1, best.indices, best.values)
    torch.testing.assert_close(active_set_codes(x, D, PENALTY, 1), first, atol=1e-12, rtol=0)
    torch.testing.assert_close(active_set_codes(x, D, PENALTY, 4), expected, atol=1e-12, rtol=0)
