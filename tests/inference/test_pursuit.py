"""Compare greedy pursuits with loops over rows, scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference_cases import half_error, problem
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

from sae.errors import UserError
from sae.inference import gradient_pursuit, matching_pursuit, orthogonal_matching_pursuit
from sae.inference import problem as problem_module

METHODS = [matching_pursuit, gradient_pursuit, orthogonal_matching_pursuit]
SIGNS = pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
ALL = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


def by_row(x: Tensor, D: Tensor, k: int, non_negative: bool, update) -> Tensor:
    """Return codes from a loop over rows; `update` changes z given the support."""
    D = D.numpy()
    out = []
    for y in x.numpy():
        z, support = np.zeros(len(D)), []
        for _ in range(k):
            products = D @ (y - z @ D)
            atom = int(np.argmax(products if non_negative else np.abs(products)))
            if not non_negative or products[atom] > 1e-12:
                support = sorted({*support, atom})
                z = update(y, z, D, support, atom, non_negative)
        out.append(z)
    return torch.from_numpy(np.array(out))


def take(y, z, D, support, atom, non_negative):
    z = z.copy()
    z[atom] += D[atom] @ (y - z @ D)
    return z


def move(y, z, D, support, atom, non_negative):
    r = y - z @ D
    along = np.zeros(len(D))
    along[support] = D[support] @ r
    if non_negative:
        along[(z <= 0) & (along < 0)] = 0
    change = along @ D
    step = (r @ change) / (change @ change)
    if not non_negative:
        return z + step * along
    room = np.full(len(D), np.inf)
    room[along < 0] = z[along < 0] / -along[along < 0]
    step = min(step, room.min())
    # Exactly 0, not 1e-18: what is above 0 by a rounding would limit the next step to nothing.
    return np.where(room <= step, 0, np.maximum(z + step * along, 0))


def fit(y, z, D, support, atom, non_negative):
    z = np.zeros(len(D))
    A = D[support].T
    z[support] = nnls(A, y)[0] if non_negative else np.linalg.lstsq(A, y, rcond=None)[0]
    return z


@SIGNS
@pytest.mark.parametrize(
    ("method", "update"),
    list(zip(METHODS, (take, move, fit), strict=True)),
    ids=lambda m: m.__name__,
)
@pytest.mark.parametrize("k", [1, 2, 6])
def test_pursuit_equals_a_loop_over_rows(method, update, k, non_negative):
    x, D = problem(60, 24, 10)
    result = method(x, D, k, non_negative=non_negative)
    expected = by_row(x, D, k, non_negative, update)
    torch.testing.assert_close(result.codes.to_dense(), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.objective, half_error(x, expected, D), atol=1e-12, rtol=0)
    assert result.gap is None and result.iterations == k


def test_gradient_pursuit_lowers_values_to_zero_but_not_below():
    """Similar atoms and samples make the first picks too large.

    Values still move after no product is positive any more.
    """
    x, D = problem(60, 24, 4)
    x, D = x.abs(), torch.nn.functional.normalize(D.square(), dim=1)
    expected, ended = [], 0
    for y in x.numpy():
        z, support = np.zeros(24), set()
        for _ in range(12):
            products = D.numpy() @ (y - z @ D.numpy())
            if products.max() > 1e-12:
                support.add(int(products.argmax()))
            z = move(y, z, D.numpy(), sorted(support), None, True)
        ended += sum(z[atom] == 0 for atom in support)
        expected.append(z)
    assert ended > 2
    result = gradient_pursuit(x, D, 12)
    expected = torch.from_numpy(np.array(expected))
    torch.testing.assert_close(result.codes.to_dense(), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.objective, half_error(x, expected, D), atol=1e-12, rtol=0)


def test_orthogonal_pursuit_equals_scikit_learn():
    x, D = problem(50, 40, 16)
    expected = torch.from_numpy(orthogonal_mp(D.numpy().T, x.numpy().T, n_nonzero_coefs=5).T)
    result = orthogonal_matching_pursuit(x, D, 5, non_negative=False).codes.to_dense()
    torch.testing.assert_close(result, expected.contiguous(), atol=1e-9, rtol=0)


@SIGNS
def test_error_falls_with_k_and_from_plain_to_gradient_to_orthogonal(non_negative):
    x, D = problem(400, 64, 16)
    errors = {}
    for k in (2, 5, 9):
        for method in METHODS:
            errors[method, k] = method(x, D, k, non_negative=non_negative).objective
    for method in METHODS:
        assert (errors[method, 5] <= errors[method, 2] + 1e-12).all()
        assert (errors[method, 9] <= errors[method, 5] + 1e-12).all()
    matching, gradient, orthogonal = (errors[method, 9].mean() for method in METHODS)
    assert orthogonal < gradient < matching


@ALL
@SIGNS
def test_norms_of_atoms_only_rescale_codes(method, non_negative):
    x, D = problem(30, 20, 8)
    scale = torch.linspace(0.1, 9, 20, dtype=torch.float64)
    expected = method(x, D, 4, non_negative=non_negative).codes.to_dense()
    scaled = method(x, scale[:, None] * D, 4, non_negative=non_negative).codes.to_dense()
    torch.testing.assert_close(scaled * scale, expected)


@ALL
@SIGNS
def test_zero_rows_zero_atoms_duplicate_atoms_and_large_k(method, non_negative):
    x, D = problem(20, 6, 8)
    x[3] = 0
    D = torch.cat([D, D, torch.zeros(1, 8, dtype=D.dtype)])
    x[4] = 2 * D[1]
    result = method(x, D, 20, non_negative=non_negative)
    z = result.codes.to_dense()
    assert torch.isfinite(z).all() and (z[:, -1] == 0).all() and (z[3] == 0).all()
    assert not non_negative or (result.codes.values > 0).all()
    assert result.codes.l0()[4] == 1 and result.objective[4] < 1e-20
    best = torch.from_numpy(np.array([nnls(D.numpy().T, y)[1] for y in x.numpy()]))
    if not non_negative:
        best = torch.from_numpy(np.array([_distance(D.numpy(), y) for y in x.numpy()]))
    assert (result.objective >= 0.5 * best.square() - 1e-12).all()
    if method is orthogonal_matching_pursuit:
        torch.testing.assert_close(result.objective, 0.5 * best.square(), atol=1e-9, rtol=0)
    empty = method(x[:0], D, 3)
    assert empty.codes.batch == 0 and empty.objective.shape == (0,)


def _distance(D, y):
    return np.linalg.norm(y - D.T @ np.linalg.lstsq(D.T, y, rcond=None)[0])


@ALL
def test_b_float32_and_chunks_of_rows_give_the_same_codes(method, monkeypatch):
    x, D = problem(300, 20, 8)
    b = torch.linspace(-1, 1, 8, dtype=torch.float64)
    expected = method(x, D, 4).codes.to_dense()
    torch.testing.assert_close(method(x + b, D, 4, b=b).codes.to_dense(), expected)
    single = method(x.float(), D.float(), 4).codes
    assert single.values.dtype == torch.float32
    torch.testing.assert_close(single.to_dense().double(), expected, atol=1e-3, rtol=0)
    monkeypatch.setattr(problem_module, "MIN_ROWS", 7)
    monkeypatch.setattr(problem_module, "NUMBERS_PER_CHUNK", {"cpu": 1})
    torch.testing.assert_close(method(x, D, 4).codes.to_dense(), expected)


@ALL
def test_errors_name_the_setting(method):
    x, D = problem(4, 6, 3)
    with pytest.raises(UserError, match="k=0"):
        method(x, D, 0)
    with pytest.raises(UserError, match=r"dictionary \(3, 6\)"):
        method(x, D.t(), 2)
    with pytest.raises(UserError, match=r"b \(4,\)"):
        method(x, D, 2, b=torch.zeros(4))
