"""Distributions of active features; bounds are 4.5 standard deviations of a count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2, multivariate_normal, norm

from sae.errors import UserError
from sae.worlds import (
    Bernoulli,
    Compositional,
    DenseCopula,
    Exact,
    FirstCopula,
    Hierarchy,
    LowRankCopula,
)
from sae.worlds.seeding import generator_of

ROWS = 20_000
ROOTS = Bernoulli(mean_active=2.0, frequency_exponent=0.5)
TREES = Hierarchy(roots=ROOTS, trees=2, children=3, depth=2, child_probability=0.6)
RULES = {
    "bernoulli": (Bernoulli(mean_active=3.0, frequency_decay=0.8), 12),
    "exact": (Exact(mean_active=4, frequency_exponent=0.5, frequency_decay=0.95), 12),
    "first": (FirstCopula(mean_active=2.0, rho=-0.24), 5),
    "low_rank": (LowRankCopula(mean_active=3.0, rank=2, strength=0.7, frequency_exponent=1.0), 12),
    "dense": (DenseCopula(mean_active=3.0, low=-0.9, high=0.9), 12),
    "exclusive": (TREES, 28),
    "independent_children": (replace(TREES, exclusive=False), 28),
    "compositional": (Compositional(mean_active=3, first=0.4), 9),
    "compositional_out": (Compositional(mean_active=3, out=True), 9),
}


def drawn(rule, n, seed=0, rows=ROWS):
    return rule.sampler(n)(rows, generator_of(seed))


def close(share, p, rows=ROWS):
    """Return whether shares of `rows` draws fit probabilities p."""
    p = torch.as_tensor(p, dtype=torch.float64)
    return bool(((share - p).abs() <= 4.5 * (p * (1 - p) / rows).sqrt() + 1e-12).all())


@pytest.mark.parametrize("name", RULES)
def test_empirical_frequencies_match_frequencies(name):
    rule, n = RULES[name]
    active, p = drawn(rule, n), rule.frequencies(n)
    assert active.shape == (ROWS, n) and active.dtype == torch.bool and p.dtype == torch.float64
    assert close(active.double().mean(0), p)
    assert torch.equal(drawn(rule, n), active) and not torch.equal(drawn(rule, n, 1), active)


def test_frequencies_follow_exponent_and_decay():
    p = Bernoulli(mean_active=3.0, frequency_decay=0.8).frequencies(12)
    torch.testing.assert_close(p[1:] / p[:-1], torch.full((11,), 0.8, dtype=torch.float64))
    assert p.sum().item() == pytest.approx(3)
    both = Bernoulli(mean_active=0.5, frequency_decay=0.5, frequency_exponent=2.0).frequencies(3)
    torch.testing.assert_close(both / both[0], torch.tensor([1, 1 / 8, 1 / 36]).double())


@pytest.mark.parametrize("name", ["first", "low_rank", "dense"])
def test_pairs_fire_together_as_often_as_the_copula_predicts(name):
    rule, n = RULES[name]
    correlation, p = rule.correlation(n), rule.frequencies(n)
    torch.testing.assert_close(correlation.diagonal(), torch.ones(n, dtype=torch.float64))
    assert torch.linalg.eigvalsh(correlation)[0] > -1e-12
    active = drawn(rule, n).double()
    together = active.T @ active / ROWS
    quantile = norm.ppf(p.numpy())
    for i, j in torch.combinations(torch.arange(n)).tolist():
        rho = correlation[i, j].item()
        both = multivariate_normal.cdf(quantile[[i, j]], cov=[[1, rho], [rho, 1]])
        assert close(together[i, j], both), (i, j, rho)


def test_correlation_matrices_match_the_settings():
    expected = torch.eye(5, dtype=torch.float64)
    expected[0, 1:] = expected[1:, 0] = 0.4
    torch.testing.assert_close(FirstCopula(rho=0.4).correlation(5), expected)
    low_rank = LowRankCopula(rank=3, strength=0.6).correlation(9)
    assert torch.linalg.eigvalsh(low_rank)[:6].tolist() == pytest.approx([0.4] * 6)
    few = DenseCopula(low=0.1, high=0.2).correlation(4)  # so small that nothing is set to zero
    pairs = few[*torch.triu_indices(4, 4, 1)]
    assert ((pairs > 0.1) & (pairs < 0.2)).all() and pairs.unique().numel() == 6
    other = DenseCopula(low=0.1, high=0.2, correlation_seed=1).correlation(4)
    assert not torch.equal(few, other)


def test_parents_of_three_levels():
    """One of 3 roots has 2 children, which have 2 children each."""
    rule = Hierarchy(roots=ROOTS, trees=1, children=2, depth=3)
    assert rule.levels(17) == [3, 2, 4, 8]
    assert rule.parents(17).tolist() == [-1] * 3 + [0, 0, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]


@pytest.mark.parametrize("exclusive", [True, False])
def test_children_fire_only_with_their_parent(exclusive):
    rule, n = replace(TREES, exclusive=exclusive), 28
    parents = rule.parents(n)
    # 28 features: 4 at the top, 2 of them with 3 children, and those with 3 each.
    assert rule.levels(n) == [4, 6, 18]
    assert parents[:10].tolist() == [-1] * 4 + [0, 0, 0, 1, 1, 1]
    assert parents[10:].tolist() == [4 + i // 3 for i in range(18)]
    active = drawn(rule, n)
    below = parents >= 0
    assert not (active[:, below] & ~active[:, parents[below]]).any()
    for parent in range(10):
        children = active[:, parents == parent].double()[active[:, parent]]
        if children.shape[1] == 0:
            continue
        at_once, rows = children.sum(1), len(children)
        if exclusive:
            assert at_once.max() == 1 and close(at_once.mean(), 0.6, rows)
            counts = children.sum(0)
            spread = ((counts - counts.mean()).square() / counts.mean()).sum().item()
            assert spread < chi2.isf(1e-5, 2)
        else:
            expected = torch.tensor([0.4**3, 3 * 0.6 * 0.4**2, 3 * 0.6**2 * 0.4, 0.6**3])
            assert close(torch.bincount(at_once.long(), minlength=4) / rows, expected, rows)


def test_hierarchy_accepts_any_distribution_of_roots():
    rule = Hierarchy(roots=Exact(mean_active=2), trees=1, children=2, child_probability=1.0)
    active = drawn(rule, 7)
    assert (active[:, :5].sum(1) == 2).all()
    assert torch.equal(active[:, 0], active[:, 5] ^ active[:, 6])


def test_feature_0_occurs_only_with_its_allowed_features():
    """n = 9, k = 3: features 1 to 4 occur with it in distribution, 5 to 8 out of distribution."""
    inside, outside = (
        Compositional(mean_active=3),
        Compositional(mean_active=3).out_of_distribution(),
    )
    active, out = drawn(inside, 9), drawn(outside, 9)
    assert (active.sum(1) == 3).all() and (out.sum(1) == 3).all()
    first = active[:, 0]
    assert not active[first][:, 5:].any() and close(first.double().mean(), 0.5)
    assert out[:, 0].all() and not out[:, 1:5].any()
    assert outside.out_of_distribution() is None
    assert Bernoulli().out_of_distribution() is None and TREES.parents(28) is not None
    # All allowed subsets are equally frequent: 6 pairs with feature 0, and 56 triples.
    for part, n_subsets in ((active[first], 6), (active[~first], 56), (out, 6)):
        counts = part.unique(dim=0, return_counts=True)[1].double()
        assert len(counts) == n_subsets
        spread = ((counts - counts.mean()).square() / counts.mean()).sum().item()
        assert spread < chi2.isf(1e-5, n_subsets - 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Bernoulli(mean_active=9.0).sampler(8), "mean_active=9.0"),
        (lambda: Bernoulli(frequency_decay=0.0), "frequency_decay=0.0"),
        (lambda: Bernoulli(frequency_decay=1.1), "frequency_decay=1.1"),
        (lambda: FirstCopula(mean_active=1.0, rho=0.6).sampler(5), "rho=0.6 .* 0.500"),
        (lambda: LowRankCopula(rank=0), "rank=0"),
        (lambda: LowRankCopula(strength=1.5), "strength=1.5"),
        (lambda: DenseCopula(low=0.5, high=0.1), "low=0.5"),
        (lambda: TREES.sampler(25), "at least 26; it is 25"),
        (lambda: replace(TREES, child_probability=0.0), "child_probability=0.0"),
        (lambda: replace(TREES, depth=0), "depth=0"),
        (lambda: Compositional(first=1.0), "first=1.0"),
        (lambda: Compositional(mean_active=6).sampler(9), "mean_active=6 .* from 2 to 5"),
        (lambda: Compositional(mean_active=1).sampler(9), "mean_active=1 "),
    ],
)
def test_error_names_the_setting_out_of_range(make, named):
    with pytest.raises(UserError, match=named):
        make()
