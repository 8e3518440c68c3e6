"""Compare least squares on given supports with scipy, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference_cases import half_error, problem
from scipy.optimize import nnls
from torch import Tensor

from sae.errors import UserError
from sae.inference import certify, duality_gap, fista, refit, support_then_refit, supports
from sae.inference import problem as problem_module
from sae.inference.result import ragged_codes, sparse_rows
from sae.inference.supports import solve_normal
from sae_kernels.codes import Codes

SIGNS = pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])


def codes_of(dense: Tensor) -> Codes:
    """Return dense codes as `Codes`."""
    return ragged_codes([sparse_rows(dense)], dense.shape[1])


def fit_with_scipy(x: Tensor, D: Tensor, support: Tensor, non_negative: bool) -> Tensor:
    """Return least-squares codes on the support of each row."""
    out = np.zeros(support.shape)
    for row, (y, on) in enumerate(zip(x.numpy(), support.numpy(), strict=True)):
        A = D.numpy()[on].T
        if on.any():
            out[row, on] = nnls(A, y)[0] if non_negative else np.linalg.lstsq(A, y, rcond=None)[0]
    return torch.from_numpy(out)


@SIGNS
@pytest.mark.parametrize("share", [0.1, 0.5], ids=["few", "many"])
def test_refit_equals_least_squares_of_each_row(share, non_negative, monkeypatch):
    x, D = problem(80, 24, 12)
    D = D * torch.linspace(0.2, 3, 24, dtype=D.dtype)[:, None]
    support = torch.rand(80, 24, generator=torch.Generator().manual_seed(1)) < share
    support[5] = False
    support &= support.cumsum(1) <= 12  # at most d_in latents, so that the solution is unique
    result = refit(x, D, codes_of(support.double()), non_negative=non_negative)
    expected = fit_with_scipy(x, D, support, non_negative)
    torch.testing.assert_close(result.codes.to_dense(), expected, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(result.objective, half_error(x, expected, D))
    assert result.gap is None
    assert (result.codes.values != 0).all()
    monkeypatch.setattr(supports, "NUMBERS_PER_CHUNK", {"cpu": 1})
    monkeypatch.setattr(problem_module, "MIN_ROWS", 9)
    monkeypatch.setattr(problem_module, "NUMBERS_PER_CHUNK", {"cpu": 1})
    again = refit(x, D, codes_of(support.double()), non_negative=non_negative)
    torch.testing.assert_close(again.codes.to_dense(), expected, atol=1e-7, rtol=1e-7)


def test_k_per_row_is_respected_in_every_chunk(monkeypatch):
    x, D = problem(40, 12, 8)
    codes = codes_of(torch.ones(40, 12, dtype=D.dtype) + torch.arange(12) / 100)
    k = torch.arange(40) % 5 + 1
    monkeypatch.setattr(problem_module, "MIN_ROWS", 7)
    monkeypatch.setattr(problem_module, "NUMBERS_PER_CHUNK", {"cpu": 1})
    result = refit(x, D, codes, k, non_negative=False).codes
    assert result.l0().tolist() == k.tolist()


def test_empty_slots_of_fixed_k_codes_are_ignored():
    x, D = problem(2, 6, 4)
    codes = Codes(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([[1, 4], [0, 5]]), 6)
    result = refit(x, D, codes, non_negative=False).codes
    assert result.l0().tolist() == [1, 2] and result.indices.tolist() == [1, 0, 5]
    value = (x[0] @ D[1]).item()
    assert result.values[0].item() == pytest.approx(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dependent_atoms_reach_the_residual_of_scipy(dtype):
    """With more similar atoms than dimensions, only the residual is unique."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 10, generator=generator, dtype=torch.float64)
    D = torch.randn(1, 10, generator=generator, dtype=torch.float64) + 0.3 * torch.randn(
        20, 10, generator=generator, dtype=torch.float64
    )
    D[3] = D[4]
    x, D = x.to(dtype), D.to(dtype)
    result = refit(x, D, codes_of(torch.ones(200, 20)))
    best = [nnls(D.double().numpy().T, y)[1] ** 2 / 2 for y in x.double().numpy()]
    atol = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(
        result.objective, torch.tensor(best, dtype=torch.float64), atol=atol, rtol=0
    )
    assert (result.codes.values > 0).all()


@pytest.mark.parametrize("guess", ["all", "none", "random"])
def test_pivoting_reaches_the_same_solution_from_any_guess(guess):
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(300, 8, 9, generator=generator, dtype=torch.float64)
    A = A / A.norm(dim=2, keepdim=True)
    y = torch.randn(300, 9, generator=generator, dtype=torch.float64)
    start = {
        "all": torch.ones(300, 8, dtype=torch.bool),
        "none": torch.zeros(300, 8, dtype=torch.bool),
        "random": torch.rand(300, 8, generator=generator) < 0.5,
    }[guess]
    free = torch.ones(300, 8, dtype=torch.bool)
    right = (A @ y[..., None])[..., 0]
    result = solve_normal(A @ A.mT, right, free, guess=start)
    expected = np.array([nnls(a.T, b)[0] for a, b in zip(A.numpy(), y.numpy(), strict=True)])
    torch.testing.assert_close(result, torch.from_numpy(expected), atol=1e-9, rtol=0)


@SIGNS
def test_support_then_refit_equals_fista_then_refit(non_negative):
    x, D = problem(50, 32, 8)
    D = D * torch.linspace(0.5, 2, 32, dtype=D.dtype)[:, None]
    b = torch.linspace(-1, 1, 8, dtype=D.dtype)
    settings = {"iterations": 500, "non_negative": non_negative, "b": b}
    result = support_then_refit(x, D, 3, 0.05, **settings)
    strength = fista(x, D, 0.05, **settings).codes.to_dense().abs() * D.norm(dim=1)
    support = torch.zeros_like(strength, dtype=torch.bool)
    support.scatter_(1, strength.topk(3, dim=1).indices, True)
    support &= strength > 0
    expected = fit_with_scipy(x - b, D, support, non_negative)
    torch.testing.assert_close(result.codes.to_dense(), expected, atol=1e-9, rtol=0)
    assert result.codes.l0().max() == 3


@pytest.mark.parametrize("k", [2, torch.arange(50) % 4], ids=["one_k", "k_per_row"])
def test_k_keeps_the_latents_with_the_largest_contribution(k):
    x, D = problem(50, 12, 8)
    D = D * torch.linspace(0.1, 4, 12, dtype=D.dtype)[:, None]
    z = torch.rand(50, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = refit(x, D, codes_of(z), k, non_negative=False)
    rank = (z * D.norm(dim=1)).argsort(1, descending=True).argsort(1)
    support = rank < (k if isinstance(k, int) else k[:, None])
    expected = fit_with_scipy(x, D, support, False)
    torch.testing.assert_close(result.codes.to_dense(), expected, atol=1e-9, rtol=1e-9)


def test_certify_measures_codes_without_changing_them():
    x, D = problem(50, 12, 8)
    b = torch.linspace(-1, 1, 8, dtype=torch.float64)
    z = torch.rand(50, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = certify(x + b, D, codes_of(z), 0.1, b=b)
    objective, gap = duality_gap(x, z, D, 0.1)
    torch.testing.assert_close(result.objective, objective)
    torch.testing.assert_close(result.gap, gap)
    assert torch.equal(result.codes.to_dense(), z)
    plain = certify(x, D, codes_of(z - 0.5), non_negative=False)
    torch.testing.assert_close(plain.objective, half_error(x, z - 0.5, D))
    assert plain.gap is None


def test_empty_codes_large_k_and_wrong_settings():
    x, D = problem(4, 6, 3)
    empty = refit(x[:0], D, codes_of(torch.zeros(0, 6)))
    assert empty.codes.batch == 0
    none = refit(x, D, codes_of(torch.zeros(4, 6)))
    assert none.codes.values.numel() == 0 and none.codes.batch == 4
    assert support_then_refit(x, D, 100, 0.1).codes.batch == 4
    assert support_then_refit(x[:0], D, 2, 0.1).codes.batch == 0
    with pytest.raises(UserError, match="k=0"):
        support_then_refit(x, D, 0, 0.1)
    with pytest.raises(UserError, match=r"\(3, 6\), but x and the dictionary have \(4, 6\)"):
        refit(x, D, codes_of(torch.ones(3, 6)))
