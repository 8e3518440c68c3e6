"""The nonlinear world and its classifier, with networks that train in under a second."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import cross_entropy, leaky_relu

from sae.errors import UserError
from sae.worlds import Compositional, NonlinearMixing, SparseLatents, SphereLatents
from sae.worlds.cache import cached, folder
from sae.worlds.network import Classifier, Mixing
from sae.worlds.seeding import generator_of

SMALL = {"classes": 12, "widths": [16, 16], "steps": 60, "batch_size": 64, "lr": 5e-3}


def small(d_in=4, latents=None, **settings):
    latents = latents or SphereLatents(n_features=4, kappa=5.0)
    return NonlinearMixing(d_in, latents, **{**SMALL, **settings})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_mixing_is_invertible():
    mixing = Mixing(6, 3, 200, generator_of(0))
    z = torch.randn(50, 6, generator=generator_of(1))
    undone = mixing(z)
    for layer, weight in reversed(list(enumerate(mixing.weights))):
        torch.testing.assert_close(weight.norm(dim=0), torch.ones(6))
        undone = torch.linalg.solve(weight, undone.T).T
        undone = leaky_relu(undone, 1 / 0.2) if layer else undone
    # The inverse of a LeakyReLU of slope 1/5 is one of slope 5.
    torch.testing.assert_close(undone, z, atol=1e-4, rtol=1e-4)
    (one,) = Mixing(6, 1, 200, generator_of(0)).weights
    (any_,) = Mixing(6, 1, 1, generator_of(0)).weights
    assert torch.linalg.cond(one) < torch.linalg.cond(any_) / 2
    assert not torch.allclose(mixing(z) + mixing(-z), torch.zeros(50, 6), atol=0.1)


def test_training_lowers_the_loss_from_that_of_the_untrained_network():
    world = small(steps=200)
    z, labels = world.sample("held_out", 0, 2000, 0)
    x = world.mixing(z)
    loss = lambda net: cross_entropy(net.logits(net(x)), labels).item()
    before = world.untrained_network()
    assert loss(world.network) < loss(before) - 0.3
    assert all(
        torch.equal(a, b) for a, b in zip(*(_start(w) for w in (world, small())), strict=True)
    )
    assert not any(p.requires_grad for p in [*world.network.parameters(), *before.parameters()])
    assert not world.network.training and not before.training


def _start(world):
    return world.untrained_network().state_dict().values()


def test_a_unit_head_has_rows_of_norm_1():
    y = torch.eye(4)
    logits = Classifier(3, [8], 4, 5, unit_head=True).logits(y)
    torch.testing.assert_close(logits.norm(dim=0), torch.ones(5))
    assert not torch.allclose(Classifier(3, [8], 4, 5).logits(y).norm(dim=0), torch.ones(5))


def test_classifier_is_trained_once_and_depends_on_settings_only(monkeypatch):
    block = small().block("train", 3, 100, 5)
    (file,) = folder().iterdir()
    # Training again gives the same bits; loading from disk trains nothing.
    file.unlink()
    assert torch.equal(small().block("train", 3, 100, 5).acts["world"], block.acts["world"])
    monkeypatch.setattr(Classifier, "fit", None)
    assert torch.equal(small().block("train", 3, 100, 5).acts["world"], block.acts["world"])
    with pytest.raises(TypeError):
        small(network_seed=1).network  # noqa: B018


def test_unwritable_cache_folder_does_not_fail(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tensors = cached({"a": 1}, lambda: {"w": torch.ones(2)}, "making")
    assert tensors["w"].tolist() == [1, 1] and (tmp_path / "file").read_text() == ""


def test_block_is_the_network_applied_to_the_mixed_codes():
    world = small(d_in=3)
    world.setup("cpu")
    block = world.block("held_out", 2, 300, 7)
    z, labels = world.sample("held_out", 2, 300, 7)
    assert torch.equal(world.codes("held_out", 2, 300, 7).to_dense(), z)
    expected = world.network(world.mixing(z))
    torch.testing.assert_close(block.acts["world"], expected)
    assert expected.shape == (300, 3) and labels.max() < 12 and world.counts.kept == 0
    assert len(block) == 300 and block.provenance is None
    for other in (("train", 2, 7), ("held_out", 3, 7), ("held_out", 2, 8)):
        assert not torch.isin(world.sample(*other[:2], 300, other[2])[0], z).any(), other
    # The classifier has training samples of its own.
    assert not torch.isin(world._sample(300, (0, 2, 1))[0], z).any()


def test_sparse_codes_of_sparse_latents():
    world = small(latents=SparseLatents(n_features=9, active=Compositional(first=0.3)))
    codes = world.codes("train", 0, 400, 0)
    assert (codes.offsets.diff() == 3).all() and len(codes.values) == 1200
    other = world.out_of_distribution()
    outside = other.codes("train", 0, 400, 0).to_dense()
    assert outside[:, 0].all() and not outside[:, 1:5].any()
    assert other.network is world.network and other.class_vectors is world.class_vectors
    assert small().out_of_distribution() is None


def test_truth_is_the_best_linear_map():
    world = small(d_in=3)
    z, _ = world.sample("train", 0, 20_000, 0)
    y = world.network(world.mixing(z)).double()
    centred, z = y - y.mean(0), z.double() - z.double().mean(0)
    error = lambda W: (centred - z @ W).square().sum().item()
    best = error(torch.linalg.lstsq(z, centred).solution)
    assert world.truth.shape == (4, 3) and world.truth.dtype == torch.float32
    assert best <= error(world.truth.double()) < 1.02 * best


def test_instance_labels_refine_the_class_labels():
    plain, world = small(), small(labels="instance", instances=5)
    z, classes = plain.sample("train", 0, 3000, 0)
    same, labels = world.sample("train", 0, 3000, 0)
    assert torch.equal(same, z) and torch.equal(labels // 5, classes)
    counts = torch.bincount(labels, minlength=60).double()
    assert ((counts - 50) ** 2 / 50).sum() < 110  # 99.99% of chi-square with 59 degrees of freedom
    assert world.untrained_network().head.weight.shape == (60, 4)


def test_another_network_seed_keeps_the_world():
    world = small()
    twin = world.with_network_seed(1)
    z, _ = world.sample("held_out", 0, 50, 0)
    assert torch.equal(twin.sample("held_out", 0, 50, 0)[0], z)
    assert torch.equal(twin.mixing(z), world.mixing(z))
    assert not torch.allclose(twin.network(z), world.network(z))
    assert json.loads(json.dumps(twin.metadata())) == {**world.metadata(), "network_seed": 1}
    assert not torch.equal(small(world_seed=1).mixing(z), world.mixing(z))
    assert world.expected_scale is None and small(unit_head=True).expected_scale == 5.0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"d_in": 0}, "d_in=0"),
        ({"classes": 1}, "classes=1"),
        ({"widths": [8, 0]}, "widths=0"),
        ({"steps": 0}, "steps=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"labels": "row"}, "labels='row'"),
        ({"labels": "instance"}, "instances=1"),
        ({"instances": 3}, "instances=3"),
        ({"mixing_layers": 0}, "mixing_layers=0"),
    ],
)
def test_error_names_the_setting_out_of_range(settings, named):
    with pytest.raises(UserError, match=named):
        small(**settings)


def test_fit_batch_norm_uses_the_statistics_of_its_data():
    net = Classifier(3, [5], 2, 4)
    x = torch.randn(300, 3, generator=generator_of(3)) * 4 + 1
    net.fit_batch_norm(x)
    linear, norm = net.body[0], net.body[1]
    hidden = linear(x)
    torch.testing.assert_close(norm.running_mean, hidden.mean(0))
    torch.testing.assert_close(norm.running_var, hidden.var(0))
    assert not net.training

    drawn = []

    def draw(size):
        x = torch.randn(size, 3, generator=generator_of(4, len(drawn)))
        drawn.append(x)
        return x, torch.zeros(size, dtype=torch.int64)

    net.fit(draw, steps=3, batch_size=8, lr=1e-2)
    assert [len(x) for x in drawn] == [8, 8, 8, 128]  # the last batch is for batch normalisation
    torch.testing.assert_close(norm.running_mean, linear(drawn[-1]).mean(0))


def test_starting_weights_depend_on_the_seed():
    one, same, other = (Classifier(3, [5], 2, 4, seed=seed) for seed in (1, 1, 2))
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, same.state_dict()[name])
        if weights.dim() == 2:
            assert not torch.equal(weights, other.state_dict()[name]), name


def test_classifier_is_not_trained_on_samples_of_a_split():
    """`sample` with the seed of the network gives none of its training samples."""
    world = small(network_seed=3)
    seen = []
    world._sample, draw = lambda *a: seen.append(draw(*a)) or seen[-1], world._sample
    world.network  # noqa: B018
    del world._sample
    trained = {tuple(row.tolist()) for z, _ in seen for row in z}
    assert len(trained) == 60 * 64 + 16 * 64
    for split in ("train", "held_out"):
        for index in range(3):
            z, _ = world.sample(split, index, 64, 3)
            assert not trained & {tuple(row.tolist()) for row in z}
