"""`evaluate`: runs with one fault each, trained, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sae.lightning.cli import main

SETTINGS = {
    "name": "r",
    "model": {"sae": {"class_path": "TopK", "init_args": {"d_sae": 64, "k": 3}}},
    "data": {
        "source": {
            "class_path": "SparseSuperposition",
            "init_args": {"d_in": 32, "n_features": 64, "mean_active": 3.0},
        },
        "batch_size": 512,
        "block_batches": 8,
        "held_out_tokens": 2048,
    },
    "trainer": {"max_steps": 300, "val_check_interval": 300, "accelerator": "cpu"},
    "checkpoint_every": 300,
}
FAULTS = {
    "encoder": [],
    "dictionary": ["--trainer.max_steps=20", "--trainer.val_check_interval=20"],
    "k": ["--model.sae.k=16", "--data.source.d_in=16"],
    "data": ["--data.source.mean_active=64", "--model.sae.k=8"],
}


def trained(folder: Path, *changes: str) -> Path:
    (folder / "c.yaml").write_text(yaml.safe_dump(SETTINGS))
    assert main(["fit", "--config", str(folder / "c.yaml"), "--runs", str(folder), *changes]) == 0
    return folder / "r"


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fault_of_a_run_is_found(tmp_path, capsys, fault):
    run = trained(tmp_path, *FAULTS[fault])
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    parts = [finding["part"] for finding in found["findings"]]
    assert fault in parts, (parts, found)
    assert all(f"{finding['part']}: {finding['says']}" in said for finding in found["findings"])
    if fault == "encoder":
        assert parts == ["encoder"]
        assert found["dictionary_mcc_signed"] > 0.9
        assert found["frozen_decoder.dictionary_mcc_signed"] < 0.6
        assert found["fvu"] < 0.5 * found["gaussian.fvu"]
        assert found["fewer.l0"] <= 2.0 < found["l0"] <= 3.0 < found["more.l0"] <= 6.0
        assert found["gap.fvu_best"] < found["gap.fvu"]
        assert found["fvu_low"] < found["gap.fvu"] < found["fvu_high"]
        assert found["code_mcc_best"] > found["code_mcc_own"]
        summary = json.loads((run / "summary.json").read_text())
        assert found["fvu"] == pytest.approx(summary["held_out"]["fvu"])
        for heading in ("this", "frozen", "noise", "the L0", "dictionary MCC", "chance", "MIS"):
            assert heading in said
        assert found["fvu_high"] < found["fvu_chance"] == 1
        assert found["dictionary_mcc_signed_low"] > found["dictionary_mcc_signed_chance"]
        # What is judged by the truth is so for a control on the same data, and for no other.
        assert found["mis"] > found["frozen_decoder.mis"] > found["mis_chance"]
        assert found["support_f1_low"] > found["frozen_decoder.support_f1_high"]
        assert "gaussian.mis" not in found and "gaussian.code_mcc" not in found
        before = {key: value for key, value in found.items() if "." not in key}
        assert main(["evaluate", str(run), "--controls", "false", "--tokens", "2048"]) == 0
        alone = json.loads((run / "evaluation.json").read_text())
        assert not [key for key in alone if key.startswith("gaussian")]
        assert {k: v for k, v in alone.items() if "." not in k} == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "nowhere holds no finished run"),
        (["nowhere", "--controls", "maybe"], "--controls maybe; give true or false"),
        (["nowhere", "--tokens", "0"], "--tokens 0 is not a number"),
        ([], "evaluate: "),
        (["a", "--wrong", "1"], "--wrong"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_bad_input_is_one_line(capsys, args, message):
    assert main(["evaluate", *args]) == 2
    assert message in capsys.readouterr().err
