from __future__ import annotations

import io

from rich.console import Console

from sae.cli.evaluate_table import WIDTH, evaluation_table
from sae.evaluation.with_baselines import Evaluation
from sae.metrics.registry import by_section

BASELINES = (
    "decoder\nfrozen",
    "Gaussian\nnoise",
    "untrained\nmodel",
    "half\nthe L0",
    "twice\nthe L0",
)
SHOWN = [
    (section, shown)
    for section, metrics in by_section()
    if (shown := [metric for metric in metrics if metric.in_table])
]


def printed(metrics, baselines):
    console = Console(file=io.StringIO(), width=WIDTH)
    headings = {name: name for name in baselines}
    console.print(evaluation_table("r", Evaluation(metrics, baselines, headings, [], "true codes")))
    return console.file.getvalue()


def test_table_with_all_metrics_and_five_baselines_fits_the_terminal():
    names = [metric.name for _, metrics in SHOWN for metric in metrics]
    values = {name + end: 0.51234 for name in names for end in ("", "_low", "_high", "_chance")}
    assert len(SHOWN) > 5
    text = printed(values, dict.fromkeys(BASELINES, values))
    assert "\u2026" not in text  # nothing is cut off
    lines = text.splitlines()
    for section, metrics in SHOWN:
        assert any(line.strip() == section for line in lines)
        for metric in metrics:
            texts = [line.removeprefix(metric.arrow_label) for line in lines]
            assert [metric.text(0.51234)] * 9 in [text.split() for text in texts], metric
    assert "compares samples by true codes" in text


def test_nulls_stand_beside_the_metrics_they_belong_to():
    names = [metric.name for _, metrics in SHOWN for metric in metrics]
    first = names.index("dictionary_mcc_signed")
    assert names[first + 1 : first + 3] == ["dictionary_mcc_random", "dictionary_mcc_samples"]
    assert names.index("intruder") + 1 == names.index("mis")
    first = names.index("ce_mean_ablation")
    assert names[first + 1 : first + 3] == ["ce_difference", "loss_recovered"]


def test_metrics_without_a_value_are_left_out():
    values = {"fvu": 0.25, "fvu_low": 0.125, "fvu_high": 0.5, "c_dec": 0.1}
    text = printed(values, {"noise": {"fvu": 0.75, "l0": 3.0}})
    rows = [line.rstrip() for line in text.splitlines()]
    (fvu,) = (row for row in rows if row.startswith("FVU"))
    assert fvu.split("↓")[1].split() == ["0.2500", "0.1250", "0.5000", "0.7500"]
    (l0,) = (row for row in rows if row.startswith("L0"))
    assert l0.split("L0")[1].split() == ["3.0"] and len(l0) == len(fvu)
    assert "Reconstruction" in rows and "Latents" in rows
    for absent in ("MCC", "Ground truth", "Capacity", "compares samples", "None"):
        assert absent not in text


def test_metrics_of_few_units_show_their_number_in_place_of_an_interval():
    text = printed(
        {"fvu": 0.25, "fvu_units": 3, "c_dec": 0.1, "c_dec_low": 0.05, "c_dec_high": 0.2}, {}
    )
    (fvu,) = (row for row in text.splitlines() if row.startswith("FVU"))
    assert fvu.split("↓")[1].split() == ["0.2500", "n", "=", "3"]
    assert "fewer than the 6 documents" in text
    assert "fewer than" not in printed({"fvu": 0.25, "fvu_low": 0.125, "fvu_high": 0.5}, {})
