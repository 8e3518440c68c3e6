"""Scores of units with values by hand, and their entries and text."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from sae.metrics.interval import POSITIVE, SHARE
from sae.metrics.score import Score, mean_score, ratio_score, sums_by_cluster


def test_mean_score_has_the_interval_of_its_units():
    units = torch.arange(100).double()
    score = mean_score(units, chance=0.25)
    assert (score.value, score.n, score.chance) == (49.5, 100, 0.25)
    margin = 1.984 * units.std().item() / 10  # t with 99 degrees of freedom
    assert (score.low, score.high) == pytest.approx((49.5 - margin, 49.5 + margin), rel=1e-3)


def test_equal_units_give_equal_scores():
    units = torch.rand(200, generator=torch.Generator().manual_seed(0))
    score = mean_score(units, bounds=SHARE)
    assert mean_score(units, bounds=SHARE) == score
    assert mean_score(units.flip(0), bounds=SHARE).low == pytest.approx(score.low)


def test_columns_count_together():
    # Every unit has the same ratio, so the interval is that ratio.
    below = torch.arange(1, 50).double()
    score = ratio_score(3 * below, below, bounds=POSITIVE)
    assert (score.value, score.low, score.high) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_few_units_have_no_interval_and_say_how_many_they_are(n):
    warnings.simplefilter("error")  # pytest restores the filters
    score = mean_score(torch.linspace(0.1, 0.9, n), bounds=SHARE)
    assert score.n == n and math.isnan(score.low) and math.isnan(score.high)
    if n == 0:
        assert math.isnan(score.value) and "a_units" not in score.entries("a")
    else:
        assert score.entries("a") == {"a": score.value, "a_units": n}
        assert str(score) == f"{score.value:.3f} [no interval from {n}] (n {n})"


def test_score_prints_as_one_line():
    assert str(Score(0.8134, 0.79, 0.83, 64, 0.12)) == "0.813 [0.790, 0.830] (n 64, chance 0.120)"
    assert str(Score(0.5, 0.25, 0.75, 7)) == "0.500 [0.250, 0.750] (n 7)"
    assert str(Score(0.0, math.nan, math.nan, 9)) == "0.000 [no interval] (n 9)"


def test_entries_leave_out_unknown_values():
    assert Score(0.5, 0.25, 0.75, 9, 0.0).entries("a") == {
        "a": 0.5,
        "a_low": 0.25,
        "a_high": 0.75,
        "a_chance": 0.0,
    }
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
    assert ratio_score(sums["a"], sums["b"]).value == 15 / 4
    monkeypatch.setattr("sae.metrics.score.MAX_CLUSTERS", 2)  # merges the first and third
    assert sums_by_cluster(columns, cluster)["a"].tolist() == [7.0, 8.0]
