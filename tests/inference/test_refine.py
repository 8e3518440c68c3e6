"""Compare `refine` with a loop over rows, and check its guarantees for any codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from inference_cases import half_error, problem
from scipy.optimize import nnls
from torch import Tensor

from sae.errors import UserError
from sae.inference import matching_pursuit, refine
from sae.inference import problem as problem_module
from sae.inference.result import ragged_codes, sparse_rows
from sae_kernels.codes import Codes

SIGNS = pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])


def random_codes(batch: int, d_sae: int, most: int, non_negative: bool) -> Codes:
    """Return codes with 0 to `most` random latents per row."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(batch, d_sae, generator=generator, dtype=torch.float64)
    z = z.abs() if non_negative else z
    rank = torch.rand(batch, d_sae, generator=generator).argsort(1).argsort(1)
    z = torch.where(rank < torch.arange(batch)[:, None] % (most + 1), z, 0)
    return ragged_codes([sparse_rows(z)], d_sae)


def refine_by_row(x: Tensor, D: Tensor, start: Tensor, steps: int, non_negative: bool) -> Tensor:
    """Return the codes of `refine`, from a loop over rows."""
    D, out = D.numpy(), []

    def fit(y, support):
        z = np.zeros(len(D))
        A = D[support].T
        if support:
            z[support] = nnls(A, y)[0] if non_negative else np.linalg.lstsq(A, y, rcond=None)[0]
        return z, ((y - z @ D) ** 2).sum()

    for y, given in zip(x.numpy(), start.numpy(), strict=True):
        support = list(np.flatnonzero(given))
        room, candidates = len(support), math.ceil(len(support) / 4)
        z, error = fit(y, support)
        for _ in range(steps):
            correlation = D @ (y - z @ D)
            correlation = correlation if non_negative else abs(correlation)
            correlation[z != 0] = -1
            new = [j for j in np.argsort(-correlation)[:candidates] if correlation[j] > 0]
            together, _ = fit(y, [*np.flatnonzero(z), *new])
            largest = [j for j in np.argsort(-abs(together))[:room] if together[j] != 0]
            new_z, new_error = fit(y, largest)
            if new_error < 0.9999 * error:
                z, error = new_z, new_error
            else:
                candidates //= 2
        out.append(z)
    return torch.from_numpy(np.array(out))


@SIGNS
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_refine_equals_a_loop_over_rows(steps, non_negative):
    x, D = problem(120, 40, 12)
    codes = random_codes(120, 40, 9, non_negative)
    result = refine(x, D, codes, steps, non_negative=non_negative)
    expected = refine_by_row(x, D, codes.to_dense(), steps, non_negative)
    torch.testing.assert_close(result.codes.to_dense(), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.objective, half_error(x, expected, D))
    assert result.gap is None and result.iterations == steps


@SIGNS
def test_error_and_l0_never_rise_and_the_steps_end(non_negative):
    x, D = problem(200, 60, 12)
    D = D * torch.linspace(0.2, 5, 60, dtype=D.dtype)[:, None]
    codes = matching_pursuit(x, D, 6, non_negative=non_negative).codes
    before, errors = half_error(x, codes.to_dense(), D), []
    for steps in (1, 3, 10):
        result = refine(x, D, codes, steps, non_negative=non_negative)
        assert (result.codes.l0() <= codes.l0()).all()
        assert not non_negative or (result.codes.values > 0).all()
        errors.append(result.objective)
    assert (errors[0] < before - 1e-9).double().mean() > 0.9
    assert (errors[0] <= before + 1e-12).all()
    assert (errors[1] <= errors[0] + 1e-12).all() and errors[1].mean() < errors[0].mean()
    assert (errors[2] <= errors[1] + 1e-12).all()
    last = refine(x, D, codes, 1000, non_negative=non_negative)
    assert last.iterations < 100
    assert last.objective.mean() < 0.6 * before.mean()


def test_refine_recovers_the_true_codes_from_a_poor_start():
    _, D = problem(1, 64, 24)
    generator = torch.Generator().manual_seed(1)
    true = torch.rand(300, 64, generator=generator).argsort(1).argsort(1) < 3
    true = true * (0.5 + torch.rand(300, 64, generator=generator, dtype=torch.float64))
    b = torch.linspace(-1, 1, 24, dtype=torch.float64)
    x = true @ D + b
    one_shot = ((x - b) @ D.t()).topk(3, dim=1)
    start = Codes(one_shot.values, one_shot.indices, 64)
    exact = lambda z: (z - true).abs().amax(1).lt(1e-9).double().mean().item()
    assert exact(start.to_dense()) == 0
    assert exact(refine(x, D, start, 8, b=b).codes.to_dense()) > 0.95
    assert refine(x, D, start, 8, b=b).objective.median() < 1e-20


@SIGNS
def test_zero_rows_duplicate_atoms_chunks_and_empty_codes(non_negative, monkeypatch):
    x, D = problem(30, 8, 6)
    x[3] = 0
    D = torch.cat([D, D, torch.zeros(1, 6, dtype=D.dtype)])
    codes = random_codes(30, 17, 17, non_negative)
    result = refine(x, D, codes, 4, non_negative=non_negative)
    z = result.codes.to_dense()
    assert torch.isfinite(z).all() and (z[:, -1] == 0).all() and (z[3] == 0).all()
    assert (result.objective <= half_error(x, codes.to_dense(), D) + 1e-9).all()
    monkeypatch.setattr(problem_module, "MIN_ROWS", 7)
    monkeypatch.setattr(problem_module, "NUMBERS_PER_CHUNK", {"cpu": 1})
    split = refine(x, D, codes, 4, non_negative=non_negative)
    torch.testing.assert_close(split.objective, result.objective, atol=1e-9, rtol=0)
    none = ragged_codes([sparse_rows(torch.zeros(30, 17))], 17)
    assert refine(x, D, none, 4).codes.values.numel() == 0
    assert refine(x[:0], D, codes.rows(slice(0, 0)), 4).codes.batch == 0


def test_errors_name_the_setting():
    x, D = problem(4, 6, 3)
    codes = random_codes(4, 6, 2, True)
    with pytest.raises(UserError, match="steps=0"):
        refine(x, D, codes, 0)
    with pytest.raises(UserError, match=r"\(4, 6\), but x and the dictionary have \(3, 6\)"):
        refine(x[:3], D, codes, 1)
