"""Counts of how often latents fire."""

from __future__ import annotations

import json

import pytest
import torch

from sae.metrics.firing import Firing, density_histogram
from sae_kernels.codes import Codes


def fixed():
    values = torch.tensor([[2.0, 0.0], [1.0, 3.0], [0.0, 0.0], [4.0, 0.0]])
    indices = torch.tensor([[1, 4], [1, 2], [0, 0], [1, 4]])
    return Codes(values, indices, 5)


def ragged():
    offsets = torch.tensor([0, 1, 3, 3, 5])
    values, indices = torch.tensor([2.0, 1.0, 3.0, 4.0, 0.0]), torch.tensor([1, 1, 2, 1, 4])
    return Codes(values, indices, 5, offsets)


@pytest.mark.parametrize("codes", [fixed(), ragged()], ids=["fixed", "ragged"])
def test_firing_counts_nonzero_values(codes):
    firing = Firing(5)
    firing.update(codes)
    firing.update(codes)
    assert firing.tokens == 8
    assert firing.counts.tolist() == [0, 6, 2, 0, 0]
    assert firing.density().tolist() == [0, 6 / 8, 2 / 8, 0, 0]
    assert firing.l0() == pytest.approx(codes.l0().double().mean().item()) == 1.0
    assert firing.never_fired_fraction() == 3 / 5


def test_firing_counts_survive_saving_and_loading(tmp_path):
    firing = Firing(5)
    firing.update(fixed())
    firing.save(tmp_path / "density.json")
    assert json.loads((tmp_path / "density.json").read_text()) == {
        "tokens": 4,
        "fired": [0, 3, 1, 0, 0],
    }
    again = Firing.load(tmp_path / "density.json")
    assert (again.tokens, again.counts.tolist()) == (4, [0, 3, 1, 0, 0])
    assert [file.name for file in tmp_path.iterdir()] == ["density.json"]


@pytest.mark.parametrize("tokens", [1000, 999, 1001, 1], ids=str)
def test_histogram_counts_every_latent_once(tokens):
    firing = Firing(6)
    firing.tokens = tokens
    firing.counts = torch.tensor([0, 1, tokens // 10, tokens // 2, tokens, 0])
    histogram = density_histogram(firing)
    alive = int((firing.counts > 0).sum())
    assert histogram.counts.sum() == alive
    assert histogram.never_fired == 6 - alive
    assert histogram.edges[0] <= torch.tensor(1 / tokens, dtype=torch.float64).log10()
    assert histogram.edges[-1] == 0


def test_histogram_bins():
    firing = Firing(5)
    firing.tokens = 100
    firing.counts = torch.tensor([1, 9, 10, 99, 100])
    histogram = density_histogram(firing, bins_per_decade=1)
    assert histogram.edges.tolist() == [-2, -1, 0]
    assert histogram.counts.tolist() == [2, 3]
