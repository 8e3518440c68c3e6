"""Runs with an end-to-end loss, for which the language model runs on the reconstruction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sae import SAE
from sae.cli.main import main
from tiny import WORLD_SOURCE, as_flags, assert_same_tensors, read_metrics

LOSSES = """[{class_path: FVU, init_args: {coefficient: 0.1}},
    {class_path: EndToEnd, init_args: {downstream: 0.5}}]"""
WAYS = {
    "plain": {},
    "micro-batches": {
        "model.accumulate": 2,
        "trainer.steps_per_call": 2,
        "data.source.packing": "document",
        "trainer.log_every_n_steps": 4,
        "checkpoint_every": 6,
    },
}


@pytest.fixture
def config(tmp_path, write_config, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_config(tmp_path, "llama")


def arguments(config: Path, *more: str) -> list[str]:
    settings = {
        "trainer.max_steps": "16",
        "trainer.log_every_n_steps": "2",
        "trainer.val_check_interval": "16",
        "checkpoint_every": "7",
        "data.source.hooks": "[layers.0, layers.1, layers.2]",
        "model.site": "Autoencoder",
        "model.site.hook": "layers.0",
        "model.losses": LOSSES,
    }
    return ["fit", "--config", str(config), *as_flags(settings), *more]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_learns_and_resumes_to_the_same_bits(config, tmp_path, way):
    assert main(arguments(config, "--name", "one", *as_flags(WAYS[way]))) == 0
    run, resumed = tmp_path / "runs/one", tmp_path / "runs/two"
    shutil.copytree(run, resumed)
    (resumed / "summary.json").unlink()
    (resumed / "checkpoints/step=16.ckpt").unlink()
    (checkpoint,) = (resumed / "checkpoints").iterdir()
    assert checkpoint.name in ("step=14.ckpt", "step=12.ckpt")
    assert main(["fit", "--resume", str(resumed)]) == 0
    assert read_metrics(run) == read_metrics(resumed)
    assert_same_tensors(SAE.load(run / "sae"), SAE.load(resumed / "sae"))
    losses = [float(row["loss"]) for row in read_metrics(run) if row["loss"]]
    assert losses[-1] < 0.8 * losses[0]
    summary = json.loads((run / "summary.json").read_text())
    batches = 32 if way == "micro-batches" else 16
    # A block of 4 batches has up to 30 positions more than 256, in the last of its contexts.
    assert 0 <= summary["tokens"] - 64 * batches <= 30 * batches / 4
    assert summary["positions"]["kept"] == summary["tokens"] and summary["held_out"]["kl_sae"] > 0


REFUSED = {
    "recorded": (["--model.cuda_graph", "true"], "language model that EndToEnd runs; leave it out"),
    "world": (
        as_flags(WORLD_SOURCE) + ["--model.site.hook", "world"],
        "data.source=SparseSuperposition has none",
    ),
    "small": (["--data.batch_size", "30"], "data.batch_size=30 is less than the 31 tokens"),
    "nothing-behind": (["--model.site.hook", "layers.2"], "downstream=0.5 needs activations"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_without_the_models_output_is_refused(config, capsys, case):
    more, named = REFUSED[case]
    assert main(arguments(config, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error


def test_a_model_without_a_head_is_refused(config, capsys, tiny_folders):
    assert main(arguments(config, "--data.source.model", str(tiny_folders["bert"]))) == 2
    assert "predicts no tokens; use a model with a next-token head" in capsys.readouterr().err
