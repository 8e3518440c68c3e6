"""The science benchmarks on worlds: their own computations, and small versions of fast ones."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.science import elhage, sparse_but_wrong, three_steps
from benchmarks.science.sparse_but_wrong import (
    Fractional,
    choose_k,
    cosines,
    train,
    true_error,
)
from sae import SAE
from sae.worlds import (
    Constant,
    Exact,
    FirstCopula,
    NonlinearMixing,
    Orthogonal,
    SparseLatents,
    World,
)


def test_fractional_k_is_shared_by_the_batch():
    sae = SAE(3, Fractional(d_sae=3, k=1.5))
    with torch.no_grad():
        for name, value in (("W_enc", torch.eye(3)), ("b_enc", 0), ("b_dec", 0)):
            getattr(sae, name).copy_(torch.as_tensor(value))
    x = torch.tensor([[5.0, 4, 1], [3, 0.5, -9]])
    codes = sae.encode_training(x).codes
    assert codes.to_dense().tolist() == [[5, 4, 0], [3, 0, 0]]
    assert codes.offsets.tolist() == [0, 2, 3]


def test_choose_k_returns_the_k_where_c_dec_stops_falling():
    assert choose_k((1.0, 2.0, 3.0), [0.3, 0.05, 0.04]) == 2
    assert choose_k((1.0, 2.0, 3.0), [0.3, 0.09, 0.04]) == 3
    assert choose_k((1.0, 2.0, 3.0), [0.04, 0.09, 0.3]) == 1


def test_error_of_the_true_dictionary():
    """5 independent features of size 1 and p 0.4: 2 are active on average, with variance 1.2.

    k 1 keeps one feature per sample on average and loses the others; k 4 loses none.
    """
    world = World(20, 5, FirstCopula(mean_active=2.0, rho=0.0), Constant(), Orthogonal())
    assert true_error(world, 1.0) == pytest.approx(1, abs=4.5 * math.sqrt(1.2 / 16_384))
    assert true_error(world, 4.0) == pytest.approx(0, abs=1e-9)


def test_too_small_k_mixes_features_that_fire_together(monkeypatch):
    monkeypatch.setattr(sparse_but_wrong, "STEPS", 250)
    world = World(20, 5, FirstCopula(mean_active=2.0, rho=0.4), Constant(spread=0.15), Orthogonal())
    small, error = train(world, 1.8)
    assert cosines(small, world)[1:, 0].min() > 0.1 and error < true_error(world, 1.8)
    right, _ = train(world, 2.0)
    assert cosines(right, world).diagonal().min() > 0.99


def test_antipodal_share_counts_only_represented_features():
    W = torch.tensor([[1.0, -1, 0, 0.1], [0, 0, 1, 0]])
    assert elhage.antipodal_share(W) == pytest.approx(2 / 3)


def test_toy_samples_have_the_requested_density():
    rarities, n = (1.0, 2.5, 10.0), 200
    x = elhage.samples(rarities, n, size=256)(3)
    assert x.shape == (3, 256, n) and x.max() <= 1
    expected = 1 / torch.tensor(rarities).double()
    active = (x > 0).double().mean((1, 2))
    assert ((active - expected).abs() < 4.5 * (expected / (256 * n)).sqrt() + 1e-4).all()
    other = elhage.samples(rarities, n, size=256, seed=1)(3)
    assert not torch.equal(x, other)


def test_antipodal_start_and_its_loss():
    W = elhage.pairs(2, 50)
    assert W.shape == (2, elhage.M, 50)
    half = torch.eye(elhage.M)
    paired = torch.cat([half, -half, torch.zeros(elhage.M, 10)], dim=1)
    torch.testing.assert_close(W[1], paired, atol=0.06, rtol=0)
    # x' of W = [1, -1] is ReLU(x_0 - x_1), ReLU(x_1 - x_0), plus b before the ReLU.
    W, b = torch.tensor([[[1.0, -1.0]]]), torch.tensor([[0.0, 0.5]])
    x = torch.tensor([[[0.75, 0.5], [0.0, 1.0]]])  # reconstructed as 0.25, 0.25 and 0, 1.5
    assert elhage.loss(W, b, x).item() == pytest.approx((0.25 + 0.0625 + 0.25) / 2)


def test_code_mcc_is_measured_on_fresh_samples(monkeypatch):
    """Replace the learned dictionary by that of a linear network, or by another."""
    world = NonlinearMixing(8, SparseLatents(n_features=8, active=Exact(mean_active=2)))
    generator = torch.Generator().manual_seed(0)
    turn, other = torch.linalg.qr(torch.randn(2, 8, 8, generator=generator)).Q
    learned = lambda W: SimpleNamespace(W_dec=W, b_dec=torch.ones(8), penalty=0.01)
    net = lambda x: torch.linalg.solve(world.mixing.weights[0], x.T).T @ turn + 1
    monkeypatch.setattr(world, "_settings", {**world._settings, "mixing_layers": 1})
    monkeypatch.setattr(three_steps, "learn_dictionary", lambda *_, **__: learned(turn))
    assert three_steps.learned_code_mcc(world, net) > 0.999
    monkeypatch.setattr(three_steps, "learn_dictionary", lambda *_, **__: learned(other))
    assert three_steps.learned_code_mcc(world, net) < 0.8
