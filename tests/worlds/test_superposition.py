"""SparseSuperposition: empirical counts compared with its docstring."""

from __future__ import annotations

import json
import math
from itertools import combinations

import pytest
import torch
import yaml

from sae.errors import UserError
from sae.worlds import SparseSuperposition

SIZE = 20_000


@pytest.mark.parametrize("active", ["bernoulli", "exact"])
def test_block_is_codes_times_truth(active):
    world = SparseSuperposition(8, 24, 3, active=active, dictionary_seed=5)
    block = world.block("train", 2, 500, seed=7)
    z = world.codes("train", 2, 500, seed=7)
    acts = block.acts["world"]
    assert acts.shape == (500, world.widths["world"]) and acts.dtype == torch.float32
    torch.testing.assert_close(acts, z.to_dense() @ world.truth)
    torch.testing.assert_close(world.truth.norm(dim=1), torch.ones(24))
    assert z.offsets is not None and (z.values > 0).all()
    assert len(block) == 500 and block.provenance is None


def test_noise_is_added_with_its_standard_deviation():
    settings = {"d_in": 16, "n_features": 32, "mean_active": 4.0}
    noisy = SparseSuperposition(**settings, noise=0.3).block("train", 0, SIZE, 1).acts["world"]
    clean = SparseSuperposition(**settings).block("train", 0, SIZE, 1).acts["world"]
    assert (noisy - clean).std().item() == pytest.approx(0.3, rel=0.01)


def test_block_is_a_pure_function_and_every_argument_matters():
    world = SparseSuperposition(8, 16, 3)
    first = world.block("train", 4, 300, 0).acts["world"]
    world.block("held_out", 9, 10, 3)
    assert torch.equal(world.block("train", 4, 300, 0).acts["world"], first)
    again = SparseSuperposition(8, 16, 3).block("train", 4, 300, 0).acts["world"]
    assert torch.equal(again, first)
    values = world.codes("train", 4, 300, 0).values
    for split, index, seed in [("held_out", 4, 0), ("train", 5, 0), ("train", 4, 1)]:
        other = world.codes(split, index, 300, seed).values
        # Two numbers of 24 random bits may meet by chance; shared streams would share them all.
        assert torch.isin(other, values).double().mean() < 0.01, (split, index, seed)
    other = SparseSuperposition(8, 16, 3, dictionary_seed=1)
    assert not torch.equal(other.truth, world.truth)
    assert torch.equal(other.codes("train", 4, 300, 0).values, values)


def test_metadata_rebuilds_the_world_and_counts_cover_training_blocks():
    world = SparseSuperposition(8, 16, 3, noise=0.1, dictionary_seed=3)
    settings = world.metadata()
    assert settings.pop("world") == "SparseSuperposition"
    assert json.loads(json.dumps(settings)) == settings
    block = world.block("train", 0, 50, 0)
    again = SparseSuperposition(**settings).block("train", 0, 50, 0)
    assert torch.equal(again.acts["world"], block.acts["world"])
    for split, index in [("train", 0), ("train", 1), ("held_out", 0)]:
        world.block(split, index, 50, 0)
    assert world.counts.kept == 100


@pytest.mark.parametrize("active", ["bernoulli", "exact"])
@pytest.mark.parametrize("exponent", [0.0, 0.7, 2.0])
def test_frequencies(active, exponent):
    world = SparseSuperposition(4, 30, 5, active=active, frequency_exponent=exponent)
    p = world.frequencies
    assert p.sum().item() == pytest.approx(5) and p.max() <= 1
    free = p < 1
    rank = torch.arange(1, 31, dtype=torch.float64)[free]
    scale = p[free] * rank**exponent
    torch.testing.assert_close(scale, scale[:1].expand_as(scale))
    z = world.codes("train", 0, SIZE, 0)
    counts = torch.bincount(z.indices, minlength=30)
    deviation = (p * (1 - p) / SIZE).sqrt()
    assert ((counts / SIZE - p).abs() <= 4.5 * deviation + 1e-12).all()
    per_row = z.offsets.diff()
    if active == "exact":
        assert (per_row == 5).all()
        assert (z.indices.view(-1, 5).diff(dim=1) > 0).all()
    else:
        variance = (p * (1 - p)).sum().item()
        assert per_row.double().var().item() == pytest.approx(variance, rel=0.05)


def test_exact_subsets_are_equally_likely():
    world = SparseSuperposition(4, 5, 2, active="exact")
    pairs = world.codes("train", 0, SIZE, 0).indices.view(-1, 2).tolist()
    expected = SIZE / 10
    chi2 = sum((pairs.count(list(c)) - expected) ** 2 / expected for c in combinations(range(5), 2))
    assert chi2 < 27.9  # 99.9% of chi-square with 9 degrees of freedom


@pytest.mark.parametrize(
    ("settings", "mean", "second"),
    [
        ({"scale": 2.0}, 2 * math.sqrt(2 / math.pi), 4.0),
        ({"magnitudes": "constant", "scale": 2.0}, 2.0, 4.0),
        ({"magnitudes": "constant", "spread": 0.1}, 1.0, 1.01),
    ],
    ids=["half_normal", "constant", "constant_spread"],
)
def test_magnitudes(settings, mean, second):
    values = SparseSuperposition(4, 16, 4, **settings).codes("train", 0, SIZE, 0).values
    assert values.mean().item() == pytest.approx(mean, rel=0.02)
    assert values.square().mean().item() == pytest.approx(second, rel=0.02)


def test_rows_drawn_in_several_chunks_are_complete(monkeypatch):
    """Draw more rows than fit into one chunk: every row has its own features, and none is lost."""
    monkeypatch.setattr("sae.worlds.world.PAIRS_PER_RUN", 16 * 7)
    world = SparseSuperposition(4, 16, 3, active="exact")
    z = world.codes("train", 0, 100, 0)
    assert z.batch == 100 and (z.offsets.diff() == 3).all()
    assert len(z.indices.view(-1, 3).unique(dim=0)) > 60


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mean_active": 0}, "mean_active=0"),
        ({"mean_active": 17}, "n_features=16"),
        ({"mean_active": 2.5, "active": "exact"}, "mean_active=2.5"),
        ({"active": "poisson"}, "active='poisson'"),
        ({"magnitudes": "gamma"}, "magnitudes='gamma'"),
        ({"spread": 0.1}, "spread=0.1"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"frequency_exponent": math.nan}, "frequency_exponent=nan"),
        ({"d_in": 0}, "d_in=0"),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_error_names_the_setting_out_of_range(settings, named):
    with pytest.raises(UserError, match=named):
        SparseSuperposition(**{"d_in": 8, "n_features": 16, "mean_active": 2.0, **settings})


def test_shipped_config_describes_a_world(repo):
    config = yaml.safe_load((repo / "configs/worlds/superposition.yaml").read_text())
    source = config["data"]["source"]
    assert source["class_path"] == "sae.worlds.SparseSuperposition"
    assert SparseSuperposition(**source["init_args"]).block("train", 0, 8, 0).acts["world"].any()
