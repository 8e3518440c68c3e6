"""Compare `log_codes` with torch's Adam on the published loss."""

from __future__ import annotations

import pytest
import torch
from inference_cases import problem

from sae.errors import UserError
from sae.inference import fista, log_codes


def test_log_codes_equal_adam_on_the_published_loss():
    x, D = problem(20, 12, 6)
    s = torch.full((20, 12), -3.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        z = s.exp()
        (((x - z @ D) ** 2).mean() + 0.04 * z.mean()).backward()  # 0.04 = 2 * 12 / 6 * 0.01
        optimizer.step()
    result = log_codes(x, D, 0.01, iterations=50, lr=0.01, start=-3.0)
    torch.testing.assert_close(result.codes.to_dense(), s.detach().exp(), atol=1e-9, rtol=0)


def test_gap_bounds_the_distance_from_the_objective_of_fista():
    x, D = problem(20, 12, 6)
    b = torch.linspace(-1, 1, 6, dtype=torch.float64)
    best = fista(x, D, 0.1, iterations=5000, tolerance=1e-12).objective
    result = log_codes(x + b, D, 0.1, iterations=3000, lr=0.02, b=b)
    missing = result.objective - best
    assert (missing > 0).all() and (result.gap >= missing).all()
    assert missing.mean() < 0.05 * best.mean()
    assert log_codes(x[:0], D, 0.1, iterations=2).codes.batch == 0


def test_errors_name_the_setting():
    x, D = problem(4, 6, 3)
    with pytest.raises(UserError, match="lr=0"):
        log_codes(x, D, 0.1, lr=0)
    with pytest.raises(UserError, match="penalty=0"):
        log_codes(x, D, 0)
