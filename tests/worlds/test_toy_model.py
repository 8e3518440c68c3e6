"""Toy models of superposition with known optima."""

from __future__ import annotations

import pytest
import torch

from sae.errors import UserError
from sae.worlds import Bernoulli, ToyModel, Uniform, World
from sae.worlds.cache import folder
from sae.worlds.toy_model import dimensions_per_feature, toy_models


def draw(step, densities, n, batch=256):
    g = torch.Generator().manual_seed(step)
    shape = (len(densities), batch, n)
    on = torch.rand(shape, generator=g) < torch.tensor(densities)[:, None, None]
    return torch.rand(shape, generator=g) * on


def test_dense_features_get_own_dimensions_and_sparse_ones_share():
    """2 dimensions for 4 features. Dense: the two that matter most, at right angles, the others
    left out. Sparse: all four, in two antipodal pairs."""
    W, b = toy_models(
        lambda step: draw(step, [1.0, 0.02], 4),
        4,
        2,
        instances=2,
        importance=torch.tensor([1.0, 1.0, 0.05, 0.05]),
        steps=1000,
        lr=1e-2,
    )
    assert W.shape == (2, 2, 4) and b.shape == (2, 4)
    dense, sparse = (w.T @ w for w in W)
    represented = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(dense, represented, atol=0.15, rtol=0)
    # The bias predicts features that are left out by their mean.
    torch.testing.assert_close(b[0, 2:], torch.full((2,), 0.5), atol=0.1, rtol=0)
    assert (sparse.diagonal() > 0.8).all()
    assert ((sparse - torch.eye(4)).amin(1) < -0.7).all()
    torch.testing.assert_close(
        dimensions_per_feature(W), torch.tensor([1.0, 0.5]), atol=0.08, rtol=0
    )


def test_training_starts_from_the_given_weights():
    """Adam moves no weight by more than about its learning rate per step."""
    start = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    x = torch.tensor([[1.0, 0.0, 1.0]])
    W, b = toy_models(lambda step: x, 3, 2, steps=3, lr=1e-4, start=start)
    torch.testing.assert_close(W, start, atol=4e-4, rtol=0)
    assert b.abs().max() < 4e-4
    assert start.tolist() == [[[1, 0, 0], [0, 0, 1]]]


def test_the_learning_rate_falls_along_a_cosine():
    """Adam moves a number whose gradient keeps its sign by the learning rate a step: 10 steps along
    the cosine come to 5.5 of the highest."""
    start = torch.tensor([[[0.1]]])
    W, b = toy_models(lambda step: torch.ones(1, 1), 1, 1, steps=10, lr=1e-4, start=start)
    assert (W - start).item() == pytest.approx(5.5e-4, rel=0.02)
    assert b.item() == pytest.approx(5.5e-4, rel=0.02)


def test_dimensions_per_feature_by_hand():
    W = torch.tensor([[[3.0, 0.0, 1.0], [0.0, 1.0, 1.0]]])
    assert dimensions_per_feature(W).tolist() == pytest.approx([2 / 12])


def test_learned_directions_are_trained_once_on_samples_of_the_world(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make = lambda **kw: World(
        2,
        6,
        Bernoulli(mean_active=6.0),  # always on: the two most important are represented
        Uniform(),
        ToyModel(**{"importance_decay": 0.3, "steps": 300, "batch_size": 64, "lr": 1e-2, **kw}),
    )
    world = make()
    assert world.truth.shape == (6, 2)
    norms = world.truth.norm(dim=1)
    assert (norms[:2] > 0.7).all() and (norms[2:] < 0.6).all()
    block = world.block("train", 0, 50, 0)
    z = world.codes("train", 0, 50, 0).to_dense()
    torch.testing.assert_close(block.acts["world"], z @ world.truth)
    assert len(list(folder().iterdir())) == 1
    (file,) = folder().iterdir()
    file.unlink()
    again = make().truth
    assert torch.equal(again, world.truth)
    monkeypatch.setattr("sae.worlds.toy_model.toy_models", None)
    assert torch.equal(make().truth, world.truth)
    with pytest.raises(TypeError):
        make(steps=301).truth  # noqa: B018


@pytest.mark.parametrize(
    "settings", [{"importance_decay": 0.0}, {"steps": 0}, {"batch_size": 0}, {"lr": float("inf")}]
)
def test_error_names_the_setting_out_of_range(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"{name}={value}"):
        ToyModel(**settings)
