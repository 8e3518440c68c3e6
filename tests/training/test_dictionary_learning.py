"""Dictionary learning against plain loops in float64, and whether it finds a dictionary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.errors import UserError
from sae.inference import duality_gap
from sae.inference.active_set import active_set_codes
from sae.metrics.decoder_directions import dictionary_mcc_signed
from sae.training import SparseCoding, learn_dictionary
from sae.training.dictionary_learning import updates as dictionary_steps
from sae.training.dictionary_learning.learn import DictionaryLearner
from sae.training.dictionary_learning.updates import add_products, lasso_codes, update_atoms
from sae.worlds import Exact, HalfNormal, World


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sparse(*shape: int, share: float, seed: int = 0) -> Tensor:
    return drawn(*shape, seed=seed) * (drawn(*shape, seed=seed + 1) > 0.5 + (1 - share))


@pytest.mark.parametrize("F", [7, 150])
def test_a_sweep_is_the_plain_loop_over_atoms(F):
    x, z = drawn(400, 5), drawn(2, 400, F, seed=1).relu()
    z[1, :, 3] = 0  # an atom that no code of the second dictionary uses
    D = normalize(drawn(2, F, 5, seed=2), dim=2)
    expected = D.clone()
    for r in range(2):
        for j in range(F):
            if z[r, :, j].any():
                residual = x - z[r] @ expected[r]
                step = z[r, :, j] @ residual / z[r, :, j].square().sum()
                expected[r, j] = (expected[r, j] + step) / (expected[r, j] + step).norm()
    found = update_atoms(D, z.mT @ z, z.mT @ x)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert torch.equal(found[1, 3], D[1, 3])


@pytest.mark.parametrize("non_negative", [True, False], ids=["non_negative", "signed"])
@pytest.mark.parametrize("F", [6, 12], ids=["gram", "two products"])
def test_codes_reach_the_optimum(F, non_negative, monkeypatch):
    monkeypatch.setitem(dictionary_steps.CODES_PER_CHUNK, "cpu", 2 * F * 128)  # two runs of rows
    x, D = drawn(200, 5), normalize(drawn(2, F, 5, seed=1), dim=2)
    z = lasso_codes(x, D, 0.3, 4000, non_negative=non_negative)
    assert z.shape == (2, 200, F) and bool((z < 0).any()) != non_negative
    for codes, atoms in zip(z, D, strict=True):
        objective, gap = duality_gap(x, codes, atoms, 0.3, non_negative=non_negative)
        assert (gap <= 1e-6 * objective).all()
    again = lasso_codes(x, D, 0.3, 1, non_negative=non_negative, start=z)
    torch.testing.assert_close(again, z, atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.004, 0.3])
def test_products_of_sparse_codes_are_those_of_dense_ones(share):
    z = drawn(2, 64, 90) * (drawn(2, 64, 90, seed=1).abs() > torch.distributions.Normal(0, 1).icdf(
        torch.tensor(1 - share / 2)))  # fmt: skip
    z[0, 5] = 0
    pairs = (z != 0).sum(2).square().sum(1)
    assert bool((pairs * 256 <= 64 * 90 * 90).all()) == (share < 0.1)
    sums = drawn(2, 90, 90, seed=2)
    expected = sums + z.mT @ z
    add_products(sums, z)
    torch.testing.assert_close(sums, expected, atol=1e-12, rtol=0)


def learner(steps: int = 10, online: bool = True, **settings) -> DictionaryLearner:
    settings = SparseCoding(**{"iterations": 5, "replace_every": None, **settings})
    return DictionaryLearner(
        4, 6, settings, steps=steps, online=online, seed=1, dtype=torch.float64
    )


def test_codes_by_rounds_are_those_of_the_active_set():
    one, x = learner(rounds=2, restarts=2), drawn(50, 4)
    one.b += drawn(2, 4, seed=3)
    z = one.codes(x, 1)
    for r in range(2):
        expected = active_set_codes(x - one.b[r], one.D[r], one.penalty, 2)
        assert torch.equal(z[r], expected) and expected.any()
    again = one.codes(x, 1, start=z)
    assert torch.equal(again[1], active_set_codes(x - one.b[1], one.D[1], 2.0, 2, start=z[1]))


def test_sums_weigh_batches_by_when_they_came():
    one, batches = learner(forgetting=2.0), drawn(3, 50, 4).abs()
    z = [one.step(x) for x in batches]
    weights = [(s / 3) ** 2 for s in (1, 2, 3)]
    weigh = lambda parts: sum(w * part for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(one.zz, weigh([c.mT @ c for c in z]))
    torch.testing.assert_close(one.zx, weigh([c.mT @ x for c, x in zip(z, batches, strict=True)]))
    # b is the mean of what the last dictionary leaves of all of them.
    left = [w * (x - c[0] @ one.D[0]).sum(0) for w, x, c in zip(weights, batches, z, strict=True)]
    torch.testing.assert_close(one.b[0], sum(left) / (50 * sum(weights)))


def test_a_fixed_set_keeps_no_sums_of_the_past():
    one, x = learner(online=False, bias=False), drawn(50, 4)
    for _ in range(3):
        z = one.step(x)
    torch.testing.assert_close(one.zz, z.mT @ z)
    assert not one.b.any()


def test_the_penalty_falls_evenly_in_its_logarithm_and_then_holds():
    s = SparseCoding(penalty=0.01, first_penalty=1.0)
    found = [s.penalty_at(step, 100) for step in (0, 20, 40, 80, 99)]
    assert found == pytest.approx([1.0, 10**-0.5, 0.1, 0.01, 0.01])
    assert [s.is_final(step, 100) for step in (0, 79, 80, 99)] == [False, False, True, True]


def test_idle_atoms_and_twins_are_replaced_by_residuals():
    one, x = learner(replace_every=1, steps=100), drawn(50, 4)
    for _ in range(2):
        one.step(x)
    one.zz[0] = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1e-3, 2.0, 2.0], dtype=torch.float64))
    one.D[0, :4] = torch.eye(4, dtype=torch.float64)
    one.D[0, 4] = normalize(torch.tensor([0.2, 0.1, 1.0, 0.0], dtype=torch.float64), dim=0)
    one.D[0, 5] = -one.D[0, 0]
    one.replaced.zero_()
    before, z = one.D.clone(), one.codes(x, 5)
    one._replace_atoms(x, z)
    changed = (before != one.D).any(2)[0].nonzero()[:, 0].tolist()
    assert changed == [3, 4]  # 3 is idle, 4 is like 2 and has less energy; -D[0] is no twin of D[0]
    assert one.replaced.item() == 2
    residuals = normalize(x - one.b[0] - z[0] @ before[0], dim=1)
    for atom in changed:
        assert (one.D[0, atom] - residuals).norm(dim=1).min() < 1e-12
        assert not one.zz[0, atom].any() and not one.zz[0, :, atom].any()
        assert not one.zx[0, atom].any()


@pytest.mark.parametrize("same, gone", [(0.65, []), (0.55, [1])])
def test_how_close_two_atoms_may_come_is_a_setting(same, gone):
    one, x = learner(replace_every=1, steps=100, same=same), drawn(50, 4)
    one.D[0, :4] = torch.eye(4, dtype=torch.float64)
    one.D[0, 4:] = -one.D[0, :2]
    one.D[0, 1] = torch.tensor([0.6, 0.8, 0.0, 0.0], dtype=torch.float64)
    one.zz[0] = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    before = one.D.clone()
    one._replace_atoms(x, one.codes(x, 5))
    assert (before != one.D).any(2)[0].nonzero()[:, 0].tolist() == gone


def test_nothing_is_replaced_at_the_end():
    one, x = learner(replace_every=1, steps=5), drawn(50, 4)
    replaced = []
    for _ in range(5):
        one.replaced.zero_()
        one.D[0, 1:] = one.D[0, 0]
        one.step(x)
        replaced.append(bool(one.replaced))
    # The last fifth is the fifth step; what the fourth would put in place would be all it has.
    assert replaced == [True, True, True, False, False]


def test_the_restart_with_the_lowest_objective_is_the_best():
    one = learner(restarts=3, steps=4)
    for x in drawn(4, 60, 4):
        one.step(x)
    x = drawn(60, 4, seed=9)
    objective, error = one.objectives(x, z := one.codes(x, 50))
    plain = [0.5 * (x - one.b[r] - z[r] @ one.D[r]).square().sum(1) for r in range(3)]
    expected = [(p + one.penalty * z[r].sum(1)).mean() for r, p in enumerate(plain)]
    torch.testing.assert_close(objective, torch.stack(expected))
    torch.testing.assert_close(error, torch.stack([2 * p.mean() for p in plain]))
    one.held.copy_(torch.tensor([3.0, 1.0, 2.0]))
    assert one.best() == 1


def test_a_resumed_learner_goes_on_with_the_same_bits():
    batches = torch.randn(10, 64, 4, generator=torch.Generator().manual_seed(3))
    settings = SparseCoding(iterations=5, restarts=2, replace_every=2)
    make = lambda seed: DictionaryLearner(4, 6, settings, steps=10, seed=seed)
    one, other = make(0), make(0)
    for x in batches[:4]:
        one.step(x)
    state = one.state_dict()
    other.load_state_dict({k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()})
    for x in batches[4:]:
        one.step(x)
        other.step(x)
    assert one.replaced.sum() > 0
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b, name
    assert one.pop_metrics() == other.pop_metrics()


@pytest.mark.parametrize("bias", [False, True])
def test_it_finds_the_dictionary_of_a_fixed_set(bias):
    world = World(8, 16, Exact(mean_active=2), HalfNormal())
    y = world.block("train", 0, 1024, 0).acts["world"]
    settings = SparseCoding(penalty=0.03, iterations=10, restarts=5, bias=bias)
    found = learn_dictionary(100 * y, 16, settings, steps=250)
    assert dictionary_mcc_signed(found.W_dec, world.truth) > 0.998
    assert torch.equal(found.W_dec, found.restarts[found.objectives.argmin()])
    assert found.b_dec.norm() < 0.1 * 100 * y.norm(dim=1).mean()
    length = y.norm(dim=1).mean().item()
    assert found.penalty == pytest.approx(0.03 * 100 * length / math.sqrt(8), rel=1e-5)
    scores = [dictionary_mcc_signed(W, world.truth) for W in found.restarts]
    assert max(scores) == pytest.approx(scores[int(found.objectives.argmin())], abs=1e-3)


def test_it_finds_the_dictionary_of_a_stream():
    world = World(16, 32, Exact(mean_active=3), HalfNormal())
    settings = SparseCoding(penalty=0.1, iterations=15, bias=False, restarts=3)
    one = DictionaryLearner(16, 32, settings, steps=150, seed=0)
    for index in range(150):
        one.step(world.block("train", index, 256, 0).acts["world"] * 2.2)
    assert dictionary_mcc_signed(one.D[one.best()], world.truth) > 0.99


@pytest.mark.parametrize(
    ("settings", "words"),
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
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        SparseCoding(**settings)


def test_samples_of_zeros_are_refused():
    with pytest.raises(UserError, match="all samples are zero"):
        learn_dictionary(torch.zeros(10, 4), 6)
