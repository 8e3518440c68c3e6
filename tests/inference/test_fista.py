"""Compare FISTA with an enumeration of all supports, and its duality gap with the optimum."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from inference_cases import half_error, problem
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import Lasso
from torch import Tensor

from sae.errors import UserError
from sae.inference import duality_gap, fista, ista, squared_spectral_norm
from sae.inference import problem as problem_module
from sae.worlds import SparseSuperposition
from sae_kernels.codes import Codes


def objective(x: Tensor, z: Tensor, D: Tensor, penalty: float) -> Tensor:
    """Return the lasso objective of each row."""
    return half_error(x, z, D) + penalty * z.abs().sum(1)


def enumerate_supports(x: Tensor, D: Tensor, penalty: float, non_negative: bool) -> Tensor:
    """Return the optimum of every row: the best stationary point over all patterns of signs."""
    best = 0.5 * x.square().sum(1)
    answer = x.new_zeros(len(x), len(D))
    for pattern in product((0, 1) if non_negative else (-1, 0, 1), repeat=len(D)):
        sign = torch.tensor(pattern, dtype=x.dtype)
        on = sign != 0
        if not 0 < on.sum() <= D.shape[1]:
            continue
        gram = D[on] @ D[on].t()
        z = x.new_zeros(len(x), len(D))
        z[:, on] = torch.linalg.solve(gram, (x @ D[on].t() - penalty * sign[on]).t()).t()
        value = objective(x, z, D, penalty)
        better = (z * sign >= 0).all(1) & (value < best)
        best, answer[better] = torch.where(better, value, best), z[better]
    return answer


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
@pytest.mark.parametrize("penalty", [0.03, 0.4])
def test_agrees_with_enumeration(non_negative, penalty):
    x, D = problem(40, 6, 4)
    D = D * torch.linspace(0.3, 2, 6, dtype=D.dtype)[:, None]  # norms other than 1
    expected = enumerate_supports(x, D, penalty, non_negative)
    result = fista(x, D, penalty, iterations=20_000, non_negative=non_negative, tolerance=1e-13)
    assert (result.gap <= 1e-12).all()
    torch.testing.assert_close(result.codes.to_dense(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.objective, objective(x, expected, D, penalty))


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
@pytest.mark.parametrize("iterations", [1, 5, 30, 200])
def test_gap_bounds_the_distance_from_the_optimum(non_negative, iterations):
    x, D = problem(64, 32, 8)
    optimum = fista(x, D, 0.1, iterations=20_000, non_negative=non_negative, tolerance=1e-12)
    result = fista(x, D, 0.1, iterations=iterations, non_negative=non_negative, tolerance=0)
    distance = result.objective - optimum.objective
    assert (result.gap >= distance - 1e-12).all()
    torch.testing.assert_close(
        result.objective, objective(x, result.codes.to_dense(), D, 0.1), atol=1e-12, rtol=0
    )


def test_gap_bounds_the_distance_for_any_codes():
    x, D = problem(64, 32, 8)
    optimum = fista(x, D, 0.1, iterations=20_000, tolerance=1e-12).objective
    z = torch.rand(64, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, gap = duality_gap(x, z, D, 0.1)
    assert (gap >= value - optimum).all()


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
def test_ista_equals_a_written_out_iteration(non_negative):
    x, D = problem(40, 24, 8)
    D = D * torch.linspace(0.3, 2, 24, dtype=D.dtype)[:, None]
    step, values = 1 / squared_spectral_norm(D), []
    z = x.new_zeros(40, 24)
    for _ in range(7):
        z = z - step * (z @ D - x) @ D.t()
        z = (z.abs() - step * 0.1).clamp(min=0) * z.sign()
        z = z.clamp(min=0) if non_negative else z
        values.append(objective(x, z, D, 0.1))
    result = ista(x, D, 0.1, iterations=7, non_negative=non_negative, tolerance=0)
    torch.testing.assert_close(result.codes.to_dense(), z, atol=1e-12, rtol=0)
    assert all((after <= before).all() for before, after in zip(values, values[1:], strict=False))
    longer = fista(x, D, 0.1, iterations=40, non_negative=non_negative, tolerance=0).objective
    plain = ista(x, D, 0.1, iterations=40, non_negative=non_negative, tolerance=0).objective
    assert longer.mean() < plain.mean() < values[-1].mean()


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
def test_momentum_and_restarts_equal_the_papers(non_negative):
    """Use the t of Beck & Teboulle and the gradient restart of O'Donoghue & Candes, row by row."""
    x, D = problem(30, 24, 8)
    step, restarts, out = 1 / squared_spectral_norm(D), 0, []
    for y in x:
        z = ahead = y.new_zeros(24)
        t = 1.0
        for _ in range(40):
            new = ahead - step * D @ (ahead @ D - y)
            new = (new.abs() - step * 0.02).clamp(min=0) * new.sign()
            new = new.clamp(min=0) if non_negative else new
            if (ahead - new) @ (new - z) > 0:
                t, restarts = 1.0, restarts + 1
            next_t = (1 + (1 + 4 * t**2) ** 0.5) / 2
            ahead, z, t = new + (t - 1) / next_t * (new - z), new, next_t
        out.append(z)
    assert restarts > 10
    result = fista(x, D, 0.02, iterations=40, non_negative=non_negative, tolerance=0)
    torch.testing.assert_close(result.codes.to_dense(), torch.stack(out), atol=1e-9, rtol=0)


def test_agrees_with_scikit_learn():
    x, D = problem(20, 24, 10)
    model = Lasso(alpha=0.1 / 10, fit_intercept=False, positive=True, tol=1e-12, max_iter=100_000)
    expected = torch.from_numpy(model.fit(D.numpy().T, x.numpy().T).coef_)
    result = fista(x, D, 0.1, iterations=20_000, tolerance=1e-13).codes.to_dense()
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_start_sets_the_initial_codes():
    x, D = problem(300, 24, 8)
    cold = fista(x, D, 0.1, iterations=2000, tolerance=1e-6, check_every=1)
    warm = fista(x, D, 0.1, tolerance=1e-6, check_every=1, start=cold.codes)
    assert warm.iterations <= 2 < cold.iterations
    z = torch.rand(300, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1 / squared_spectral_norm(D)
    expected = (z - step * (z @ D - x) @ D.t() - step * 0.1).clamp(min=0)
    fixed_k = Codes(z, torch.arange(24).expand(300, 24), 24)
    result = fista(x, D, 0.1, iterations=1, start=fixed_k).codes.to_dense()
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)
    with pytest.raises(UserError, match=r"\(300, 24\), but x and the dictionary have \(4, 24\)"):
        fista(x[:4], D, 0.1, start=fixed_k)


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
def test_zero_rows_duplicate_atoms_and_an_empty_batch(non_negative):
    x, D = problem(12, 6, 4)
    x[3] = 0
    D = torch.cat([D, D, torch.zeros(1, 4, dtype=D.dtype)])
    result = fista(x, D, 0.1, iterations=5000, non_negative=non_negative, tolerance=1e-9)
    single = fista(x, D[:6], 0.1, iterations=5000, non_negative=non_negative, tolerance=1e-9)
    torch.testing.assert_close(result.objective, single.objective, atol=1e-7, rtol=0)
    assert result.codes.l0()[3] == 0 and (result.codes.to_dense()[:, -1] == 0).all()
    empty = fista(x[:0], D, 0.1, non_negative=non_negative)
    assert empty.codes.batch == 0 and empty.gap.shape == (0,)


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
def test_no_latent_fires_when_the_penalty_is_the_largest_correlation(non_negative):
    x, D = problem(20, 16, 8)
    correlation = x @ D.t()
    penalty = (correlation if non_negative else correlation.abs()).max().item()
    result = fista(x, D, penalty, iterations=10, non_negative=non_negative)
    assert result.codes.values.numel() == 0 and result.codes.batch == 20
    assert (result.gap == 0).all()
    below = fista(x, D, 0.9 * penalty, iterations=10, non_negative=non_negative)
    assert below.codes.values.numel() > 0


def test_each_row_stops_at_its_own_tolerance():
    x, D = problem(50, 32, 8)
    x[:25] = 0  # converged from the start
    result = fista(x, D, 0.1, iterations=5000, tolerance=1e-3, check_every=10)
    assert 10 < result.iterations < 5000
    assert (result.gap <= 1e-3 * result.objective + 1e-15).all()
    assert (result.codes.l0()[:25] == 0).all() and (result.codes.l0()[25:] > 0).all()


def test_result_does_not_depend_on_how_rows_are_split(monkeypatch):
    x, D = problem(300, 32, 8)
    one_chunk = fista(x, D, 0.1)
    monkeypatch.setattr(problem_module, "MIN_ROWS", 7)
    monkeypatch.setattr(problem_module, "NUMBERS_PER_CHUNK", {"cpu": 1})
    split = fista(x, D, 0.1)
    torch.testing.assert_close(
        split.codes.to_dense(), one_chunk.codes.to_dense(), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(split.gap, one_chunk.gap, atol=1e-9, rtol=0)


def test_b_is_subtracted_and_low_precision_is_solved_in_float32():
    x, D = problem(30, 16, 8)
    b = torch.linspace(-1, 1, 8, dtype=torch.float64)
    torch.testing.assert_close(
        fista(x + b, D, 0.1, b=b).codes.to_dense(), fista(x, D, 0.1).codes.to_dense()
    )
    half = x.bfloat16()
    result = fista(half, D.float(), 0.1)
    assert result.codes.values.dtype == torch.float32 and result.gap.dtype == torch.float64
    exact = fista(half.double(), D.float().double(), 0.1).codes.to_dense()
    torch.testing.assert_close(result.codes.to_dense().double(), exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(64, 8), (8, 64), (5, 5)])
def test_spectral_norm_is_not_underestimated(shape):
    _, D = problem(1, *shape)
    true = torch.linalg.matrix_norm(D, 2).item() ** 2
    assert true <= squared_spectral_norm(D) <= true * (1 + 1e-5)


def test_known_dictionary_gives_the_true_codes():
    """A linear encoder reaches an MCC of 0.61 here, and 500 iterations reach 0.99.

    The data have 16 features in 8 dimensions, 3 active (O'Neill, Gumran & Klindt 2411.13117).
    """
    world = SparseSuperposition(8, 16, 3, active="exact")
    x = world.block("held_out", 0, 1024, 0).acts["world"]
    true = world.codes("held_out", 0, 1024, 0).to_dense()
    result = fista(x, world.truth, 0.0025, iterations=500).codes.to_dense()
    correlation = torch.corrcoef(torch.cat([true.t(), result.t()]))[:16, 16:].abs()
    rows, columns = linear_sum_assignment(correlation.numpy(), maximize=True)
    assert list(columns) == list(range(16))
    assert correlation[rows, columns].mean().item() >= 0.985


def test_errors_name_the_setting():
    x, D = problem(4, 6, 3)
    with pytest.raises(UserError, match="penalty=0"):
        fista(x, D, 0)
    with pytest.raises(UserError, match=r"dictionary \(3, 6\)"):
        fista(x, D.t(), 0.1)
    with pytest.raises(UserError, match="iterations=0"):
        fista(x, D, 0.1, iterations=0)
