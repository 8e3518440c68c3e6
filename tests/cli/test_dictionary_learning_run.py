"""Sparse coding from the command line: what a run leaves, and that a killed one loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sae import SAE
from sae.cli.main import main
from tiny import assert_same_state, assert_same_tensors, read_metrics

STEPS = 60
CONFIG = """
name: one
model:
  sae: {class_path: TopK, init_args: {d_sae: 24, k: 2}}
  losses: [{class_path: FVU}]
  optim: {lr: 1.0e-2}
  ema: 0.9
  sparse_coding: {share: 0.5, restarts: 3, iterations: 10, replace_every: 2, penalty: 0.1}
data:
  source:
    class_path: sae.worlds.World
    init_args:
      d_in: 12
      n_features: 16
      active: {class_path: Exact, init_args: {mean_active: 2}}
  batch_size: 128
  block_batches: 7
  held_out_tokens: 1024
trainer: {max_steps: 60, log_every_n_steps: 4, val_check_interval: 20, accelerator: cpu}
checkpoint_every: 6
"""


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return file


def assert_same(one: Path, other: Path) -> None:
    """Check that two runs have the same metrics, SAEs and last checkpoints to the last bit."""
    assert read_metrics(one) == read_metrics(other)
    for folder in ("sae", "sae_ema"):
        assert_same_tensors(SAE.load(one / folder), SAE.load(other / folder))
    checkpoint = lambda run: torch.load(run / f"checkpoints/step={STEPS}.ckpt", weights_only=True)
    a, b = (checkpoint(run)["state_dict"] for run in (one, other))
    assert_same_state(a, b)


def kill_at(step: int, arguments: list[str], metrics: Path) -> None:
    """Start a run as a process of its own and kill it once metrics.csv shows `step`."""
    train = Path(__file__).resolve().parents[2] / "train.py"
    process = subprocess.Popen(
        [sys.executable, str(train), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 500
    while not metrics.exists() or f"\n{step}," not in metrics.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(16, id="in the first part", marks=pytest.mark.slow),
        pytest.param(44, id="in the second part"),
    ],
)
def test_it_finds_the_dictionary_and_a_killed_run_ends_with_the_same_bits(config, tmp_path, step):
    arguments = ["fit", "--config", str(config)]
    assert main([*arguments, "--name", "whole"]) == 0
    run, killed = tmp_path / "runs/whole", tmp_path / "runs/killed"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["tokens"] == STEPS * 128
    held_out = summary["held_out"]
    assert held_out["dictionary_mcc_signed"] > 0.95 > held_out["dictionary_mcc_signed_chance"] + 0.2
    kill_at(step, [*arguments, "--name", "killed"], killed / "metrics.csv")
    assert not (killed / "summary.json").exists()
    assert main(["fit", "--resume", str(killed)]) == 0
    assert_same(run, killed)


def test_metrics_are_those_of_each_part(config, tmp_path):
    assert main(["fit", "--config", str(config)]) == 0
    table = read_metrics(tmp_path / "runs/one")
    assert [int(row["step"]) for row in table] == [*range(4, 61, 4)]
    first, second = table[:7], table[7:]  # the last row of the first part is of step 28
    for name in ("objective", "penalty", "replaced_atoms"):
        assert all(row[name] for row in first) and not any(row[name] for row in second), name
    for name in ("loss", "lr"):
        assert not any(row[name] for row in first) and all(row[name] for row in second), name
    for name in ("fvu", "l0", "dead_fraction"):
        assert all(row[name] for row in table), name
    assert float(first[0]["penalty"]) > float(first[-1]["penalty"]) == 0.1
    assert float(first[-1]["replaced_atoms"]) > 0
    held_out = {int(row["step"]): row["held_out_fvu"] for row in table if row["held_out_fvu"]}
    assert held_out.keys() == {20, 40, 60} and float(held_out[60]) < float(held_out[40])
    assert (tmp_path / "runs/one/report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        (
            "sparse_coding.penalty",
            "-1",
            "model.sparse_coding.penalty=-1.0 must be a positive number",
        ),
        ("sparse_coding.share", "0.001", "share=0.001 of 60 steps leaves no step"),
        ("cuda_graph", "true", "model.cuda_graph=true cannot record the steps of"),
        ("resample_every", "5", "model.resample_every=5 changes the dictionary"),
    ],
)
def test_what_cannot_be_ends_with_one_line(config, capsys, setting, value, words):
    assert main(["fit", "--config", str(config), f"--model.{setting}", value]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error
