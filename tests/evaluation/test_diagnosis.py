"""Findings of a diagnosis from given metrics.

tests/cli/test_evaluate_command.py trains runs that have these faults.
"""

from __future__ import annotations

import pytest

from sae.evaluation.diagnosis import diagnose

SOUND = {
    "fvu": 0.10,
    "l0": 8.0,
    "gap.fvu": 0.11,
    "gap.fvu_best": 0.10,
    "largest_k": 16,
    "c_dec": 0.1,
    "dead_fraction": 0.02,
    "dictionary_mcc_signed": 0.99,
    "dictionary_mcc_signed_chance": 0.36,
    "frozen_decoder.gap.fvu_best": 0.5,
    "gaussian.fvu": 0.4,
    "more.c_dec": 0.1,
    "more.l0": 16.0,
}


def parts(**changes: float) -> list[str]:
    return [f.part for f in diagnose(SOUND | {k.replace("__", "."): v for k, v in changes.items()})]


@pytest.mark.parametrize(
    ("at", "beyond", "part"),
    [
        ({"gap__fvu_best": 0.0826}, {"gap__fvu_best": 0.0824}, "encoder"),
        ({"dictionary_mcc_signed": 0.9}, {"dictionary_mcc_signed": 0.899}, "dictionary"),
        (
            {"frozen_decoder__gap__fvu_best": 0.112},
            {"frozen_decoder__gap__fvu_best": 0.111},
            "dictionary",
        ),
        ({"l0": 16.0}, {"l0": 16.01}, "k"),
        ({"more__c_dec": 0.0901}, {"more__c_dec": 0.0899}, "k"),
        (
            {"more__c_dec": 0.0899, "fewer__c_dec": 0.1111},
            {"more__c_dec": 0.0899, "fewer__c_dec": 0.1112},
            "k",
        ),
        ({"dead_fraction": 0.1}, {"dead_fraction": 0.101}, "width"),
        ({"gaussian__fvu": 0.112}, {"gaussian__fvu": 0.111}, "data"),
    ],
)
def test_findings_appear_only_beyond_their_thresholds(at, beyond, part):
    assert parts() == []
    assert parts(**at) == []
    assert parts(**beyond) == [part]


def test_missing_metrics_make_no_finding():
    assert diagnose({"fvu": 0.9, "l0": 3.0}) == []
    assert diagnose({"fvu": 0.0, "gap.fvu": 0.0, "gap.fvu_best": 0.0, "l0": 3.0}) == []


def test_findings_name_their_metrics():
    (finding,) = diagnose(SOUND | {"l0": 20.0})
    text = str(finding)
    assert text.startswith("k: 20.0 latents fire on a token") and "allows at most 16" in text
    (finding,) = diagnose(SOUND | {"gap.fvu_best": 0.055})
    assert "50% of the error" in finding.text and "0.0550 instead of 0.1100" in finding.text
