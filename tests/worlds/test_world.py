"""World: magnitudes, directions and blocks."""

from __future__ import annotations

import json
from math import pi, sqrt

import pytest
import torch

from sae.errors import UserError
from sae.worlds import (
    Bernoulli,
    Coherent,
    Compositional,
    Constant,
    Exact,
    HalfNormal,
    Hierarchy,
    LowRankCopula,
    Orthogonal,
    Random,
    Uniform,
    World,
)
from sae.worlds.directions import coherence, welch_bound
from sae.worlds.seeding import generator_of

COUNT = 40_000


@pytest.mark.parametrize(
    ("magnitudes", "mean", "second", "fourth"),
    [
        # Moments E m, E m^2, E m^4.
        (HalfNormal(scale=2.0), 2 * sqrt(2 / pi), 4.0, 48.0),
        (Uniform(low=0.25, high=2.0), 1.125, (2**3 - 0.25**3) / 5.25, (2**5 - 0.25**5) / 8.75),
        (Constant(spread=0.1), 1.0, 1.01, 1.0603),
    ],
    ids=["half_normal", "uniform", "constant"],
)
@pytest.mark.parametrize("signed", [False, True])
def test_magnitudes_have_their_moments(magnitudes, mean, second, fourth, signed):
    distribution = type(magnitudes)(**{**vars(magnitudes), "signed": signed})
    values = distribution.draw(COUNT, generator_of(0)).double()
    first = values.mean().item()
    spread = sqrt((second - (0 if signed else mean**2)) / COUNT)
    assert abs(first - (0 if signed else mean)) < 4.5 * spread
    assert abs(values.square().mean() - second) < 4.5 * sqrt((fourth - second**2) / COUNT)
    assert (values.min() < 0) == signed and values.abs().min() > 0
    if not signed:
        assert torch.equal(values, magnitudes.draw(COUNT, generator_of(0)).double())


def test_uniform_magnitudes_stay_in_their_range():
    values = Uniform(low=0.25, high=2.0).draw(COUNT, generator_of(0))
    assert values.min() > 0.25 and values.max() <= 2 and values.max() > 1.999


@pytest.mark.parametrize("expected", [0.2, 0.3, 0.9])
def test_coherence_matches_the_setting(expected):
    rows = Coherent(coherence=expected).rows(48, 24, 0, None)
    assert coherence(rows.double()) == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(48))
    assert torch.linalg.matrix_rank(rows) == 24


def test_welch_bound_of_three_vectors_in_a_plane():
    """3 vectors in 2 dimensions: 60 degrees apart as lines, cosine 1/2."""
    assert welch_bound(3, 2) == 0.5 and welch_bound(2, 2) == 0
    rows = Coherent(coherence=0.51).rows(3, 2, 0, None)
    assert coherence(rows) == pytest.approx(0.51, abs=1e-4)
    with pytest.raises(UserError, match=r"coherence=0.5 .* above 0.500"):
        World(2, 3, Bernoulli(mean_active=1), directions=Coherent(coherence=0.5))
    assert coherence(torch.eye(3)) == 0 and coherence(torch.tensor([[1.0], [-1.0]])) == 1


def test_orthogonal_directions_are_orthogonal():
    rows = Orthogonal().rows(5, 7, 3, None)
    torch.testing.assert_close(rows @ rows.T, torch.eye(5), atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="n_features=8 .* d_in=7"):
        World(7, 8, Bernoulli(mean_active=1), directions=Orthogonal())


def test_directions_depend_on_the_dictionary_seed():
    for directions in (Random(), Orthogonal(), Coherent(coherence=0.5)):
        rows = directions.rows(6, 6, 1, None)
        assert torch.equal(directions.rows(6, 6, 1, None), rows)
        assert not torch.equal(directions.rows(6, 6, 2, None), rows)


TREE = Hierarchy(roots=Bernoulli(mean_active=2.0), trees=2, children=2, depth=2, scaled=True)


def test_scaled_child_is_multiplied_by_its_parent():
    plain = Hierarchy(**{**vars(TREE), "scaled": False})
    settings = {"d_in": 6, "n_features": 16, "magnitudes": Uniform(low=0.5)}
    scaled, drawn = (
        World(active=rule, **settings).codes("train", 0, 500, 0).to_dense()
        for rule in (TREE, plain)
    )
    expected = drawn.clone()
    for feature, parent in enumerate(TREE.parents(16).tolist()):
        if parent >= 0:
            expected[:, feature] *= expected[:, parent]
    torch.testing.assert_close(scaled, expected)
    assert (drawn[:, 10:] > 0).any(0).all() and not torch.equal(scaled, drawn)


WORLDS = {
    "tree": {"active": TREE, "magnitudes": Uniform(signed=True), "directions": Coherent()},
    "copula": {"active": LowRankCopula(mean_active=3.0), "directions": Orthogonal()},
    "split": {"active": Compositional(mean_active=3), "magnitudes": Constant(), "noise": 0.1},
}


def test_different_keys_give_different_random_streams():
    keys = [(0,), (1,), (0, 1), (2, 1), (1, 2), (0, 0, 1), (1, 1, 1)]
    drawn = {key: torch.rand(4, generator=generator_of(*key)) for key in keys}
    assert len({tuple(values.tolist()) for values in drawn.values()}) == len(keys)
    assert all(torch.equal(torch.rand(4, generator=generator_of(*k)), v) for k, v in drawn.items())


@pytest.mark.parametrize("name", WORLDS)
def test_blocks_are_pure_functions_and_independent_streams(name):
    make = lambda: World(16, 16, dictionary_seed=5, **WORLDS[name])
    world = make()
    block = world.block("train", 2, 400, seed=7)
    z = world.codes("train", 2, 400, seed=7)
    noise = block.acts["world"] - z.to_dense() @ world.truth
    limit = 4.5 * world.noise / sqrt(2 * noise.numel()) + 1e-6
    assert abs(noise.square().mean().sqrt() - world.noise) < limit
    assert len(block) == 400 and block.provenance is None
    assert z.offsets is not None and z.indices.dtype == torch.int64
    world.block("held_out", 3, 50, 1)
    assert torch.equal(make().block("train", 2, 400, seed=7).acts["world"], block.acts["world"])
    for other in (("held_out", 2, 7), ("train", 3, 7), ("train", 2, 8)):
        fresh = world.block(*other[:2], 400, other[2]).acts["world"]
        codes = world.codes(*other[:2], 400, other[2]).to_dense()
        assert (codes == z.to_dense()).all(1).double().mean() < 0.1, other
        if world.noise:
            both = torch.stack([noise.flatten(), (fresh - codes @ world.truth).flatten()])
            assert both.corrcoef()[0, 1].abs() < 4.5 / sqrt(noise.numel()), other


def test_directions_are_not_learned_from_samples_of_a_split():
    """Compare the samples for learned directions with blocks of the same seed and index."""
    seen = []

    class Looks(Orthogonal):
        def rows(self, n, d_in, seed, samples):
            seen.extend([samples(40, 3), samples(40, 3), samples(40, 4)])
            return super().rows(n, d_in, seed, samples)

    world = World(16, 16, Bernoulli(mean_active=4.0), directions=Looks(), dictionary_seed=5)
    assert world.truth.shape == (16, 16)
    once, again, next_step = seen
    assert once.shape == (40, 16) and torch.equal(once, again)
    blocks = [world.codes(split, 3, 40, 5).to_dense() for split in ("train", "held_out")]
    for other in (*blocks, next_step):
        assert (other == once).all(1).double().mean() < 0.2


def test_held_out_is_in_distribution():
    world = World(8, 9, Compositional(mean_active=3))
    other = world.out_of_distribution()
    for split in ("train", "held_out"):
        inside = world.codes(split, 0, 2000, 0).to_dense() != 0
        outside = other.codes(split, 0, 2000, 0).to_dense() != 0
        assert not (inside[:, :1] & inside[:, 5:]).any()
        assert outside[:, 0].all() and not outside[:, 1:5].any()
    assert torch.equal(other.truth, world.truth)
    assert (
        not torch.isin(
            other.codes("train", 0, 2000, 0).values, world.codes("train", 0, 2000, 0).values
        )
        .double()
        .mean()
        > 0.01
    )
    assert torch.equal(other.frequencies, other.active.frequencies(9))
    other.block("train", 0, 10, 0)
    assert (world.counts.kept, other.counts.kept) == (0, 10)
    assert World(8, 9, Exact(mean_active=3)).out_of_distribution() is None


def test_metadata_lists_all_settings():
    said = json.loads(json.dumps(World(16, 16, **WORLDS["tree"]).metadata()))
    assert said["world"] == "World" and said["directions"] == {
        "class": "Coherent",
        "coherence": 0.3,
    }
    assert said["active"]["roots"]["mean_active"] == 2.0 and said["magnitudes"]["signed"] is True


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: World(0, 3), "d_in=0"),
        (lambda: World(3, 3, Bernoulli(mean_active=1), noise=float("nan")), "noise=nan"),
        (lambda: Uniform(low=1.0, high=1.0), "low=1.0"),
        (lambda: HalfNormal(scale=-1.0), "scale=-1.0"),
    ],
)
def test_error_names_the_setting_out_of_range(make, named):
    with pytest.raises(UserError, match=named):
        make()
