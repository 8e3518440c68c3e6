"""The tables in tests/tiny.py have every rule, site and loss term of the package."""

from __future__ import annotations

from sae.autoencoder.losses import LossTerm
from sae.autoencoder.sites import Site
from sae.autoencoder.sparsity import Sparsity
from tiny import LOSSES, RULES, all_rules, all_sites, package_classes, penalties


def test_every_sparsity_rule_is_listed():
    assert set(RULES) == set(package_classes(Sparsity))


def test_every_site_is_listed_under_its_name():
    sites = all_sites(("a", "b"), ("c", "d"))
    assert {name: type(site) for name, site in sites.items()} == package_classes(Site)


def test_every_loss_term_is_listed():
    terms = [term for terms in LOSSES.values() for term in terms]
    terms += [term for rule in all_rules(8).values() for term in penalties(rule)]
    assert {type(term).__name__ for term in terms} | {"EndToEnd"} == set(package_classes(LossTerm))


def test_exactly_the_rules_that_need_a_penalty_have_one():
    for name, rule in all_rules(8).items():
        assert bool(penalties(rule)) == rule.needs_penalty, name
