"""Dictionary learning equals plain loops in float64, and recovers known dictionaries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.autoencoder.init import geometric_median
from sae.errors import UserError
from sae.inference import duality_gap
from sae.inference.active_set import active_set_codes
from sae.metrics.decoder_directions import dictionary_mcc_signed
from sae.training import SparseCoding, learn_dictionary
from sae.training.dictionary_learning import updates as dictionary_steps
from sae.training.dictionary_learning.learn import DictionaryLearner
from sae.training.dictionary_learning.updates import add_products, lasso_codes, update_atoms
from sae.worlds import Exact, HalfNormal, World


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("F", [7, 150])
def test_update_atoms_equals_a_plain_loop_over_atoms(F):
    x, z = randn(400, 5), randn(2, 400, F, seed=1).relu()
    z[1, :, 3] = 0  # no code uses atom 3 of the second dictionary
    D = normalize(randn(2, F, 5, seed=2), dim=2)
    expected = D.clone()
    for r in range(2):
        for j in range(F):
            if z[r, :, j].any():
                residual = x - z[r] @ expected[r]
                step = z[r, :, j] @ residual / z[r, :, j].square().sum()
                expected[r, j] = (expected[r, j] + step) / (expected[r, j] + step).norm()
    result = update_atoms(D, z.mT @ z, z.mT @ x)
    torch.testing.assert_close(result, expected, atol=1e-10, rtol=0)
    assert torch.equal(result[1, 3], D[1, 3])


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
@pytest.mark.parametrize("F", [6, 12], ids=["gram", "two products"])
def test_lasso_codes_converge_to_the_optimum(F, non_negative, monkeypatch):
    monkeypatch.setitem(dictionary_steps.CODES_PER_CHUNK, "cpu", 2 * F * 128)  # two chunks of rows
    x, D = randn(200, 5), normalize(randn(2, F, 5, seed=1), dim=2)
    z = lasso_codes(x, D, 0.3, 4000, non_negative=non_negative)
    assert z.shape == (2, 200, F) and bool((z < 0).any()) != non_negative
    for codes, atoms in zip(z, D, strict=True):
        objective, gap = duality_gap(x, codes, atoms, 0.3, non_negative=non_negative)
        assert (gap <= 1e-6 * objective).all()
    restarted = lasso_codes(x, D, 0.3, 1, non_negative=non_negative, start=z)
    torch.testing.assert_close(restarted, z, atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.004, 0.3])
def test_add_products_of_sparse_codes_equals_the_dense_product(share):
    z = randn(2, 64, 90) * (randn(2, 64, 90, seed=1).abs() > torch.distributions.Normal(0, 1).icdf(
        torch.tensor(1 - share / 2)))  # fmt: skip
    z[0, 5] = 0
    pairs = (z != 0).sum(2).square().sum(1)
    assert bool((pairs * 256 <= 64 * 90 * 90).all()) == (share < 0.1)
    sums = randn(2, 90, 90, seed=2)
    expected = sums + z.mT @ z
    add_products(sums, z)
    torch.testing.assert_close(sums, expected, atol=1e-12, rtol=0)


def make_learner(steps: int = 10, online: bool = True, **settings) -> DictionaryLearner:
    settings = SparseCoding(**{"iterations": 5, "replace_every": None, **settings})
    return DictionaryLearner(
        4, 6, settings, steps=steps, online=online, seed=1, dtype=torch.float64
    )


def test_codes_with_rounds_equal_active_set_codes():
    trained, x = make_learner(rounds=2, restarts=2), randn(50, 4)
    trained.b += randn(2, 4, seed=3)
    z = trained.codes(x, 1)
    for r in range(2):
        expected = active_set_codes(x - trained.b[r], trained.D[r], trained.penalty, 2)
        assert torch.equal(z[r], expected) and expected.any()
    restarted = trained.codes(x, 1, start=z)
    assert torch.equal(
        restarted[1], active_set_codes(x - trained.b[1], trained.D[1], 2.0, 2, start=z[1])
    )


def test_online_sums_weight_batches_by_forgetting():
    trained, batches = make_learner(forgetting=2.0), randn(3, 50, 4).abs()
    z = [trained.step(x) for x in batches]
    weights = [(s / 3) ** 2 for s in (1, 2, 3)]
    weighted_sum = lambda parts: sum(w * part for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(trained.zz, weighted_sum([c.mT @ c for c in z]))
    products = [c.mT @ x for c, x in zip(z, batches, strict=True)]
    torch.testing.assert_close(trained.zx, weighted_sum(products))
    # b is the weighted mean of the samples minus their reconstruction by the last dictionary.
    residuals = [
        w * (x - c[0] @ trained.D[0]).sum(0) for w, x, c in zip(weights, batches, z, strict=True)
    ]
    torch.testing.assert_close(trained.b[0], sum(residuals) / (50 * sum(weights)))


def test_sums_of_a_fixed_set_are_those_of_the_last_step():
    trained, x = make_learner(online=False, bias=False), randn(50, 4)
    for _ in range(3):
        z = trained.step(x)
    torch.testing.assert_close(trained.zz, z.mT @ z)
    assert not trained.b.any()


def test_penalty_falls_log_linearly_and_then_stays():
    s = SparseCoding(penalty=0.01, first_penalty=1.0)
    penalties = [s.penalty_at(step, 100) for step in (0, 20, 40, 80, 99)]
    assert penalties == pytest.approx([1.0, 10**-0.5, 0.1, 0.01, 0.01])
    assert [s.is_final(step, 100) for step in (0, 79, 80, 99)] == [False, False, True, True]


def test_idle_and_similar_atoms_are_replaced_by_residuals():
    trained, x = make_learner(replace_every=1, steps=100), randn(50, 4)
    for _ in range(2):
        trained.step(x)
    trained.zz[0] = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1e-3, 2.0, 2.0], dtype=torch.float64))
    trained.D[0, :4] = torch.eye(4, dtype=torch.float64)
    trained.D[0, 4] = normalize(torch.tensor([0.2, 0.1, 1.0, 0.0], dtype=torch.float64), dim=0)
    trained.D[0, 5] = -trained.D[0, 0]
    trained.replaced.zero_()
    before, z = trained.D.clone(), trained.codes(x, 5)
    trained._replace_atoms(x, z)
    changed = (before != trained.D).any(2)[0].nonzero()[:, 0].tolist()
    # 3 is idle; 4 is similar to 2 and has less energy; -D[0] is not similar to D[0].
    assert changed == [3, 4]
    assert trained.replaced.item() == 2
    residuals = normalize(x - trained.b[0] - z[0] @ before[0], dim=1)
    for atom in changed:
        assert (trained.D[0, atom] - residuals).norm(dim=1).min() < 1e-12
        assert not trained.zz[0, atom].any() and not trained.zz[0, :, atom].any()
        assert not trained.zx[0, atom].any()


@pytest.mark.parametrize("same, replaced", [(0.65, []), (0.55, [1])])
def test_atoms_are_replaced_only_above_the_cosine_same(same, replaced):
    trained, x = make_learner(replace_every=1, steps=100, same=same), randn(50, 4)
    trained.D[0, :4] = torch.eye(4, dtype=torch.float64)
    trained.D[0, 4:] = -trained.D[0, :2]
    trained.D[0, 1] = torch.tensor([0.6, 0.8, 0.0, 0.0], dtype=torch.float64)
    trained.zz[0] = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    before = trained.D.clone()
    trained._replace_atoms(x, trained.codes(x, 5))
    assert (before != trained.D).any(2)[0].nonzero()[:, 0].tolist() == replaced


def test_no_atom_is_replaced_in_the_final_steps():
    trained, x = make_learner(replace_every=1, steps=5), randn(50, 4)
    replaced = []
    for _ in range(5):
        trained.replaced.zero_()
        trained.D[0, 1:] = trained.D[0, 0]
        trained.step(x)
        replaced.append(bool(trained.replaced))
    # The fifth step is final, so no atom is replaced after the fourth step or after the fifth.
    assert replaced == [True, True, True, False, False]


def test_best_is_the_restart_with_the_lowest_objective():
    trained = make_learner(restarts=3, steps=4)
    for x in randn(4, 60, 4):
        trained.step(x)
    x = randn(60, 4, seed=9)
    objective, error = trained.objectives(x, z := trained.codes(x, 50))
    errors = [(x - trained.b[r] - z[r] @ trained.D[r]).square().sum(1) for r in range(3)]
    expected = [(0.5 * e + trained.penalty * z[r].sum(1)).mean() for r, e in enumerate(errors)]
    torch.testing.assert_close(objective, torch.stack(expected))
    torch.testing.assert_close(error, torch.stack([e.mean() for e in errors]))
    trained.held.copy_(torch.tensor([3.0, 1.0, 2.0]))
    assert trained.best() == 1


def test_resumed_dictionary_learner_continues_with_the_same_bits():
    batches = torch.randn(10, 64, 4, generator=torch.Generator().manual_seed(3))
    settings = SparseCoding(iterations=5, restarts=2, replace_every=2)
    make = lambda seed: DictionaryLearner(4, 6, settings, steps=10, seed=seed)
    trained, resumed = make(0), make(0)
    for x in batches[:4]:
        trained.step(x)
    state = trained.state_dict()
    resumed.load_state_dict({k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()})
    for x in batches[4:]:
        trained.step(x)
        resumed.step(x)
    assert trained.replaced.sum() > 0
    for (name, a), b in zip(
        trained.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b, name
    assert trained.pop_metrics() == resumed.pop_metrics()


@pytest.mark.parametrize("bias", [False, True])
def test_learn_dictionary_recovers_the_dictionary_of_a_fixed_set(bias):
    world = World(8, 16, Exact(mean_active=2), HalfNormal())
    y = world.block("train", 0, 1024, 0).acts["world"]
    settings = SparseCoding(penalty=0.03, iterations=10, restarts=5, bias=bias)
    result = learn_dictionary(100 * y, 16, settings, steps=250)
    assert dictionary_mcc_signed(result.W_dec, world.truth) > 0.998
    assert torch.equal(result.W_dec, result.restarts[result.objectives.argmin()])
    assert result.b_dec.norm() < 0.1 * 100 * y.norm(dim=1).mean()
    center = geometric_median(y) if bias else 0
    mean_norm = (y - center).norm(dim=1).mean().item()
    assert result.penalty == pytest.approx(0.03 * 100 * mean_norm / math.sqrt(8), rel=1e-5)
    scores = [dictionary_mcc_signed(W, world.truth) for W in result.restarts]
    assert max(scores) == pytest.approx(scores[int(result.objectives.argmin())], abs=1e-3)


def test_dictionary_learner_recovers_the_dictionary_of_a_stream():
    world = World(16, 32, Exact(mean_active=3), HalfNormal())
    settings = SparseCoding(penalty=0.1, iterations=15, bias=False, restarts=3)
    trained = DictionaryLearner(16, 32, settings, steps=150, seed=0)
    for index in range(150):
        trained.step(world.block("train", index, 256, 0).acts["world"] * 2.2)
    assert dictionary_mcc_signed(trained.D[trained.best()], world.truth) > 0.99


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": 0.0}, "sparse_coding.penalty=0.0 must be a positive number"),
        ({"first_penalty": 0.01}, "first_penalty=0.01 is below penalty=0.1"),
        ({"share": 1.0}, "share=1.0 must be above 0, and below 1"),
        ({"forgetting": -1.0}, "forgetting=-1.0 must not be negative"),
        ({"restarts": 0}, "restarts=0; give at least 1"),
        ({"rounds": 0}, "rounds=0; give at least 1"),
        ({"rounds": 3, "non_negative": False}, "rounds=3 finds no negative codes"),
        ({"same": 0.0}, "same=0.0 is a cosine"),
        ({"replace_every": 0}, "replace_every=0; give at least 1"),
    ],
)
def test_settings_out_of_range_raise_an_error_that_names_them(settings, message):
    with pytest.raises(UserError, match=message):
        SparseCoding(**settings)


def test_learn_dictionary_refuses_samples_of_zeros():
    with pytest.raises(UserError, match="all samples are zero"):
        learn_dictionary(torch.zeros(10, 4), 6)
