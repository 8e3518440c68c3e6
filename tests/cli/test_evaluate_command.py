"""`evaluate` on trained runs that have one fault each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sae import SAE
from sae.autoencoder.sparsity import AbsTopK, TopK
from sae.cli.main import main
from sae.evaluation.evaluate import evaluate
from sae.evaluation.measure import measure
from sae.evaluation.similarity import SampleSimilarity
from sae.metrics.capacity import capacity, effective_dimension, largest_k
from sae.worlds import SparseSuperposition
from tiny import run_settings, write_settings

SETTINGS = run_settings(
    {
        "name": "r",
        "model.sae.k": 3,
        "data.source.d_in": 32,
        "data.batch_size": 512,
        "data.block_batches": 8,
        "data.held_out_tokens": 2048,
        "trainer": {"max_steps": 300, "val_check_interval": 300, "accelerator": "cpu"},
        "checkpoint_every": 300,
    }
)
FAULTS = {
    "encoder": [],
    "dictionary": ["--trainer.max_steps=20", "--trainer.val_check_interval=20"],
    "k": ["--model.sae.k=16", "--data.source.d_in=16"],
    "width": ["--model.sae.d_sae=256", "--model.dead_after=2000"],
    "data": ["--data.source.mean_active=64", "--model.sae.k=8"],
}


def trained(folder: Path, *changes: str) -> Path:
    config = write_settings(folder, SETTINGS)
    assert main(["fit", "--config", str(config), "--runs", str(folder), *changes]) == 0
    return folder / "r"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[] if fault == "dictionary" else pytest.mark.slow)
        for fault in FAULTS
    ],
)
def test_evaluate_finds_the_fault_of_a_run(tmp_path, capsys, monkeypatch, fault):
    run = trained(tmp_path, *FAULTS[fault])
    capsys.readouterr()
    sources, from_source = [], SampleSimilarity.from_source
    record = lambda source: sources.append(source) or from_source(source)
    monkeypatch.setattr(SampleSimilarity, "from_source", record)
    assert main(["evaluate", str(run)]) == 0
    assert len(sources) == 1  # one similarity for the run and all of its baselines
    text = capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    parts = [finding["part"] for finding in found["findings"]]
    assert fault in parts, (parts, found)
    assert all(f"{finding['part']}: {finding['says']}" in text for finding in found["findings"])
    summary = json.loads((run / "summary.json").read_text())
    dead = [found[f"dead_fraction{end}"] for end in ("_low", "", "_high")]
    assert dead == sorted(dead) and dead[1] == pytest.approx(summary["dead_fraction"])
    if fault == "encoder":
        assert parts == ["encoder"]
        assert found["dictionary_mcc_signed"] > 0.9
        assert found["frozen_decoder.dictionary_mcc_signed"] < 0.6
        assert found["fvu"] < 0.5 * found["gaussian.fvu"]
        assert found["fewer.l0"] <= 2.0 < found["l0"] <= 3.0 < found["more.l0"] <= 6.0
        assert found["gap.fvu_best"] < found["gap.fvu"]
        assert found["fvu_low"] < found["gap.fvu"] < found["fvu_high"]
        assert found["code_mcc_best"] > found["code_mcc_own"]
        assert found["fvu"] == pytest.approx(summary["held_out"]["fvu"])
        for heading in ("this", "frozen", "noise", "the L0", "dictionary MCC", "chance", "MIS"):
            assert heading in text
        page = (run / "report.html").read_text()
        assert "Dictionary MCC" in page and "95% interval" in page and "Chance level" in page
        assert found["fvu_high"] < found["fvu_chance"] == 1
        assert found["dictionary_mcc_signed_low"] > found["dictionary_mcc_signed_chance"]
        # Ground truth applies to baselines on the same data, and to no other.
        assert found["mis"] > found["frozen_decoder.mis"] > found["mis_chance"]
        assert found["support_f1_low"] > found["frozen_decoder.support_f1_high"]
        assert "gaussian.mis" not in found and "gaussian.code_mcc" not in found
        before = {key: value for key, value in found.items() if "." not in key}
        assert main(["evaluate", str(run), "--baselines", "false", "--tokens", "2048"]) == 0
        alone = json.loads((run / "evaluation.json").read_text())
        assert not [key for key in alone if key.startswith("gaussian")]
        assert {k: v for k, v in alone.items() if "." not in k} == before


@pytest.mark.slow
def test_values_over_all_rows_replace_those_over_stored_rows():
    world = SparseSuperposition(d_in=16, n_features=32, mean_active=2.0)
    sae = SAE(16, TopK(d_sae=32, k=3))
    found = measure(sae, world, max_tokens=9000, seed=5)
    plain = evaluate(sae, world, max_tokens=9000, seed=5)
    assert {name: found[name] for name in plain} == plain
    assert found["tokens"] == 9000 and found["fvu_low"] < found["fvu"] < found["fvu_high"]
    room = capacity(16, 32, found["l0"])
    assert (found["delta"], found["margin"]) == (room.delta, room.margin)
    assert found["largest_k"] == room.largest_k < largest_k(16, 32 // 2)
    (x,) = world.block("held_out", 0, 4096, 5).acts.values()
    spread = effective_dimension(torch.cov(x.double().T))
    assert found["effective_dimension"] == pytest.approx(spread, rel=0.05)
    signed = measure(SAE(16, AbsTopK(d_sae=32, k=3)), world, max_tokens=500, seed=5)
    assert signed["delta"] == capacity(16, 32, signed["l0"], non_negative=False).delta


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "nowhere holds no finished run"),
        (["nowhere", "--baselines", "maybe"], "--baselines maybe; give true or false"),
        (["nowhere", "--tokens", "0"], "--tokens 0; give at least 1"),
        ([], "RUN is missing"),
        (["a", "--wrong", "1"], "--wrong"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_bad_input_is_reported_in_one_line(capsys, args, message):
    assert main(["evaluate", *args]) == 2
    assert message in capsys.readouterr().err
