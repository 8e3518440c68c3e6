"""Bootstrap intervals against all resamples of small samples."""

from __future__ import annotations

import math
import warnings
from itertools import product

import numpy as np
import pytest
import torch

from sae.metrics.bootstrap import Score, bootstrap_score, ratio, sums_by_cluster


def test_interval_equals_all_resamples():
    units = torch.tensor([0.0, 1.0, 5.0])
    means = [np.mean(drawn) for drawn in product(units.tolist(), repeat=3)]  # 27 resamples
    score = bootstrap_score(units, chance=0.25, resamples=20_000)
    assert (score.value, score.n, score.chance) == (2, 3, 0.25)
    # The two extreme means have probability 1 / 27 each, which is above 2.5%.
    assert (score.low, score.high) == (min(means), max(means))
    units = torch.arange(100).double()
    score = bootstrap_score(units, resamples=4000)
    spread = 1.96 * units.std(correction=0).item() / 10
    assert score.value - score.low == pytest.approx(spread, rel=0.1)
    assert score.high - score.value == pytest.approx(spread, rel=0.1)


def test_interval_depends_on_the_seed_and_not_on_batches(monkeypatch):
    units = torch.randn(200, generator=torch.Generator().manual_seed(0))
    score = bootstrap_score(units)
    assert bootstrap_score(units) == score
    assert bootstrap_score(units, seed=1) != score
    monkeypatch.setattr("sae.metrics.bootstrap._NUMBERS", 1000)
    assert bootstrap_score(units) == score


def test_columns_are_resampled_together():
    # Every unit has a ratio of 3, so every resample has it too.
    below = torch.arange(1, 50).double()
    ratio = lambda a, b, axis: a.sum(axis) / b.sum(axis)
    score = bootstrap_score(3 * below, below, statistic=ratio)
    assert (score.value, score.low, score.high) == pytest.approx((3, 3, 3))


def test_one_unit_has_no_interval():
    warnings.simplefilter("error")  # pytest restores the filters
    one, none = bootstrap_score(torch.tensor([0.5])), bootstrap_score(torch.tensor([]))
    assert one.value == 0.5 and one.n == 1 and math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(none.value) and none.n == 0 and math.isnan(none.low)


def test_score_prints_as_one_line():
    assert str(Score(0.8134, 0.79, 0.83, 64, 0.12)) == "0.813 [0.790, 0.830] (n 64, chance 0.120)"
    assert str(Score(0.5, 0.25, 0.75, 4)) == "0.500 [0.250, 0.750] (n 4)"


def test_entries_leave_out_unknown_values():
    assert Score(0.5, 0.25, 0.75, 4, 0.0).entries("a") == {
        "a": 0.5,
        "a_low": 0.25,
        "a_high": 0.75,
        "a_chance": 0.0,
    }
    assert Score(0.5, math.nan, math.nan, 1).entries("a") == {"a": 0.5}
    (value,) = Score(math.nan, math.nan, math.nan, 0).entries("a").values()
    assert math.isnan(value)


def test_sums_by_cluster_merge_excess_clusters(monkeypatch):
    columns = {"a": torch.tensor([1.0, 2.0, 4.0, 8.0]), "b": torch.ones(4)}
    cluster = torch.tensor([70, -1, 70, 5])
    sums = sums_by_cluster(columns, cluster)
    assert {name: column.tolist() for name, column in sums.items()} == {
        "a": [2.0, 8.0, 5.0],
        "b": [1.0, 1.0, 2.0],
    }
    assert ratio(sums["a"].numpy(), sums["b"].numpy(), axis=0) == 15 / 4
    monkeypatch.setattr("sae.metrics.bootstrap._CLUSTERS", 2)  # merges the first and third
    assert sums_by_cluster(columns, cluster)["a"].tolist() == [7.0, 8.0]
