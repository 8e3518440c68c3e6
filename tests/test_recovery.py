"""`benchmarks.recovery`: its results, and its bounds on them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from benchmarks import recovery, results_io
from sae.errors import UserError

GOOD = {"fvu": 0.1, "l0": 8.0, "mcc": 0.995, "dead": 0.01}


def row(**changes) -> recovery.Row:
    values = {
        **{field.name: "" for field in fields(recovery.Row)},
        **{"recipe": "TopK", "trainer": "peer", "seed": 0, "threads": 1, "chance": 0.3},
        **{"silent": 0.0, "cpu_ms": 1.0, "lr": 1e-3},
        **GOOD,
        **changes,
    }
    return recovery.Row(**values)


def test_run_writes_its_results_and_repeats_to_the_bit(tmp_path):
    command = ["--recipe", "JumpReLU,Matryoshka", "--seeds", "1", "--steps", "40"]
    recovery.main([*command, "--out", str(tmp_path)])
    (file,) = tmp_path.glob("recovery_cpu_*.csv")
    jump, matryoshka = results_io.read_rows(file, recovery.Row)
    assert (jump.recipe, matryoshka.recipe) == ("JumpReLU", "Matryoshka")
    assert "MCC < 0.9" in jump.verdict, "40 steps are too few"
    assert 0.4 < jump.chance < 0.7 and 0 < jump.fvu < 2 and jump.cpu_ms > 0
    assert jump.command.startswith("python -m benchmarks.recovery")
    recovery.main([*command, "--out", str(tmp_path)])  # replaces the rows, with the same bits
    again = results_io.read_rows(file, recovery.Row)
    assert [(r.fvu, r.l0, r.mcc) for r in again] == [
        (r.fvu, r.l0, r.mcc) for r in (jump, matryoshka)
    ]
    assert "| JumpReLU | ours |" in file.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("TopK", {}, "yes"),
        ("TopK", {"fvu": 0.1751}, "FVU > 0.175"),
        ("TopK", {"mcc": 0.989}, "MCC < 0.99"),
        ("TopK", {"dead": 0.05}, "dead >= 5%"),
        ("TopK", {"l0": 4.0}, "yes"),
        ("L1", {"fvu": 0.9}, "yes"),
        ("L1", {"l0": 8.41}, "L0 off by more than 5%"),
        ("Gated", {"l0": 7.59, "mcc": 0.5}, "L0 off by more than 5%, MCC < 0.9"),
        ("TopK", {"fvu": float("nan")}, "FVU > 0.175"),
    ],
)
def test_verdict_names_the_missed_bounds(name, changes, expected):
    assert recovery.verdict(recovery.RECIPES[name], 8, **{**GOOD, **changes}) == expected


def test_best_learning_rate_of_a_peer_has_about_the_target_l0():
    near, better = row(variant="a", mcc=0.8), row(variant="b", mcc=0.9, l0=9.9)
    dense = row(variant="c", mcc=0.99, l0=60.0)
    assert recovery.best([near, better, dense], 8) == {better.key}
    assert recovery.best([dense, row(variant="d", l0=20.0)], 8) == {row(variant="d").key}
    ours = row(trainer="ours", mcc=1.0)
    assert recovery.best([ours], 8) == set()


def test_an_unknown_recipe_is_refused():
    with pytest.raises(UserError, match="--recipe TopQ is not known; choose among TopK"):
        recovery.main(["--recipe", "TopQ"])
