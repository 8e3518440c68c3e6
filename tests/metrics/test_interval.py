"""Intervals on small cases by hand, and how often they cover the truth in a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import CASES, OURS, SPREAD, coverage, dead_latents
from sae.metrics.interval import ANY, COSINE, MIN_UNITS, POSITIVE, SHARE, ratio_interval

SIX = np.array([1.0, 2.0, 4.0, 5.0, 7.0, 11.0])
ONES = np.ones(6)


def test_mean_without_bounds_has_the_classic_t_interval():
    found = ratio_interval(SIX, ONES)
    low, high = stats.t.interval(0.95, df=5, loc=5, scale=SIX.std(ddof=1) / math.sqrt(6))
    assert found == pytest.approx((5, low, high, 6))


def test_units_of_unequal_size_equal_the_matrix_formula_of_bell_and_mccaffrey():
    # A mean of rows is the regression of the rows on a constant, with the units as clusters.
    above, below = np.array([3.0, 1, 4, 1, 5, 9, 2]), np.array([1.0, 2, 1, 4, 3, 9, 5])
    value, w = above.sum() / below.sum(), below / below.sum()
    error = np.sqrt((((above - value * below) / below.sum()) ** 2 / (1 - w)).sum())
    residual_maker = np.eye(7) - np.outer(w, np.ones(7))
    form = residual_maker.T @ np.diag(1 / (1 - w)) @ residual_maker
    eigenvalues = np.linalg.eigvals(form @ np.diag(w**2)).real
    df = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert 1 < df < 6
    low, high = stats.t.interval(0.95, df=df, loc=value, scale=error)
    assert ratio_interval(above, below) == pytest.approx((value, low, high, 7))


def test_positive_interval_solves_its_quadratic_equation_and_is_symmetric_in_the_log():
    value, low, high, _ = ratio_interval(SIX, ONES, POSITIVE)
    margin = stats.t.ppf(0.975, 5) * SIX.std(ddof=1) / math.sqrt(6)
    for end in (low, high):
        assert (value - end) ** 2 == pytest.approx(margin**2 * end / value)
    assert low > 0 and low * high == pytest.approx(value**2)


def test_share_interval_is_clopper_pearson_with_the_effective_number_of_draws():
    hits = np.arange(40) < 6
    value, low, high, units = ratio_interval(hits, np.ones(40), SHARE)
    draws = 39 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 39)) ** 2
    expected = stats.beta.ppf(
        [0.025, 0.975], [0.15 * draws, 0.15 * draws + 1], [0.85 * draws + 1] * 2
    )
    expected[1] = stats.beta.ppf(0.975, 0.15 * draws + 1, 0.85 * draws)
    assert (value, low, high, units) == pytest.approx((0.15, *expected, 40))


@pytest.mark.parametrize(("bounds", "bottom"), [(SHARE, 0), (COSINE, -1)])
def test_units_that_all_lie_at_a_bound_do_not_give_an_empty_interval(bounds, bottom):
    value, low, high, _ = ratio_interval(np.full(20, bottom), np.ones(20), bounds)
    exact = stats.binomtest(0, 20).proportion_ci(0.95, method="exact").high
    assert (value, low) == (bottom, bottom)
    assert (high - bottom) / (1 - bottom) == pytest.approx(exact)
    value, low, high, _ = ratio_interval(np.ones(20), np.ones(20), bounds)
    assert (value, high) == (1, 1)
    assert (1 - low) / (1 - bottom) == pytest.approx(exact)


def test_units_with_one_value_inside_the_bounds_have_that_value_as_interval():
    for bounds in (ANY, POSITIVE, SHARE, COSINE):
        assert ratio_interval(np.full(9, 0.5), np.ones(9), bounds) == (0.5, 0.5, 0.5, 9)
    assert ratio_interval(np.full(9, 32.0), np.ones(9), POSITIVE)[:3] == (32, 32, 32)


def test_zeros_of_a_positive_metric_have_no_interval():
    value, low, high, _ = ratio_interval(np.zeros(9), np.ones(9), POSITIVE)
    assert value == 0 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("bounds", [ANY, POSITIVE, SHARE, COSINE])
def test_fewer_than_six_units_have_no_interval(bounds):
    values = np.linspace(0.2, 0.8, MIN_UNITS)
    _, low, high, units = ratio_interval(values, np.ones(MIN_UNITS), bounds)
    assert low < 0.5 < high and units == MIN_UNITS
    # Units without any row do not count.
    below = np.r_[np.ones(MIN_UNITS - 1), 0, 0]
    value, low, high, units = ratio_interval(below * 0.5, below, bounds)
    assert value == 0.5 and math.isnan(low) and math.isnan(high) and units == MIN_UNITS - 1


def test_denominators_that_add_up_to_zero_have_no_value():
    value, low, high, _ = ratio_interval(SIX, np.array([1.0, -1, 1, -1, 1, -1]))
    assert not math.isfinite(value) and math.isnan(low) and math.isnan(high)


def test_interval_of_many_columns_equals_that_of_each():
    rng = np.random.default_rng(0)
    above, below = rng.random((3, 4, 10)), 1 + rng.random((3, 4, 10))
    for bounds in (ANY, POSITIVE, SHARE):
        every = ratio_interval(above, below, bounds)
        for place in np.ndindex(3, 4):
            single = ratio_interval(above[place], below[place], bounds)
            assert single == pytest.approx(tuple(part[place] for part in every))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_intervals_cover_the_truth_from_12_documents_on(case):
    truth = case.truth(documents=1_000_000)
    for documents in (12, 25, 60):
        results = coverage(case, truth, documents, replications=2000, resamples=200)
        covered, width, _ = results[OURS]
        # The standard error of a coverage of .95 is .005 here.
        assert 0.93 <= covered <= 0.985, documents
        assert width < 2.5 * results[SPREAD][1], documents
        if documents == 12:  # the interval that was printed before fails this test
            before, _, _ = results["percentile bootstrap (before)"]
            assert before < 0.91


def test_intervals_of_a_share_of_latents_cover_the_truth_even_if_none_is_dead():
    for d_sae, share, before, now, empty in dead_latents(replications=1000, resamples=200):
        assert now >= 0.93, (d_sae, share)
        if empty > 0.2:
            assert before < 0.85, (d_sae, share)
