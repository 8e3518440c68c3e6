"""The registry of metrics: labels, sections and derived names."""

from __future__ import annotations

from sae.metrics.metric import Metric
from sae.metrics.registry import SECTIONS, all_metrics, by_section, find_metric


def test_labels_are_unique_short_and_described():
    labels = [metric.label for metric in all_metrics().values() if metric.in_table]
    repeated = {label for label in labels if labels.count(label) > 1}
    assert not repeated
    for metric in all_metrics().values():
        assert metric.description.endswith("."), metric
        assert len(metric.arrow_label) <= 28, metric
        assert metric.text(0.5)


def test_every_metric_is_in_one_known_section():
    sections = list(by_section())
    assert tuple(section for section, _ in sections) == SECTIONS
    assert [m.name for _, metrics in sections for m in metrics] == list(all_metrics())


def test_derived_keys_find_their_metric():
    assert find_metric("held_out_fvu").label == "held-out FVU"
    assert find_metric("a,k=3/held_out_fvu").name == "held_out_fvu"
    chance = find_metric("dictionary_mcc_signed_chance")
    assert (chance.label, chance.better, chance.detail) == ("dictionary MCC, chance", "none", True)
    assert find_metric("of_my_own") == Metric("of_my_own", "of_my_own")


def test_titles_keep_symbols_as_they_are():
    assert find_metric("dead_fraction").title == "Dead latents"
    assert find_metric("c_dec").title == "c_dec, mean |cosine|"
    assert find_metric("kl_sae").axis_label == "KL of model's output (nats)"
