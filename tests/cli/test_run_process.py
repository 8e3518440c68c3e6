"""Runs as real processes: killed, interrupted, resumed, and refused where one exists."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sae import SAE
from tiny import assert_same_state, assert_same_tensors, read_csv, read_metrics

REPO = Path(__file__).resolve().parent.parent.parent
STEPS = 90  # as in the config of conftest.py


@pytest.fixture(scope="module")
def config(tmp_path_factory, write_config) -> Path:
    """Write a config with AuxK whose blocks, logs, checkpoints and validations never coincide."""
    return write_config(tmp_path_factory.mktemp("config"))


def run(cwd: Path, *args: str | Path, code: int = 0, **more) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def command(*args: str | Path) -> list[str]:
    return [sys.executable, str(REPO / "train.py"), *map(str, args)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SAE_QUIET": "1"}


def stop_at(cwd: Path, step: int, number: signal.Signals, *args: str | Path) -> tuple[int, str]:
    """Start a run, send it a signal at `step` of metrics.csv; return its exit code and stderr."""
    process = subprocess.Popen(
        command(*args), cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True
    )
    rows = cwd / "runs" / "tiny" / "metrics.csv"
    deadline = time.monotonic() + 240
    while last_step(rows) < step:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    return process.returncode, error


def last_step(file: Path) -> int:
    rows = read_csv(file) if file.exists() else []
    return int(rows[-1]["step"]) if rows else 0


def assert_same_run(one: Path, other: Path) -> None:
    """Compare every tensor of the last checkpoint and of the SAE, and every row of metrics."""
    rows = read_metrics(one)
    assert rows == read_metrics(other)
    assert [int(row["step"]) for row in rows] == sorted({*range(4, STEPS, 4), 30, 60, STEPS})
    states = [
        torch.load(f / "checkpoints" / f"step={STEPS}.ckpt", weights_only=True)
        for f in (one, other)
    ]
    assert_same_state(states[0]["state_dict"], states[1]["state_dict"], "state_dict")
    assert_same_state(
        states[0]["optimizer_states"], states[1]["optimizer_states"], "optimizer_states"
    )
    assert_same_tensors(SAE.load(one / "sae"), SAE.load(other / "sae"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, config) -> Path:
    cwd = tmp_path_factory.mktemp("uninterrupted")
    run(cwd, "fit", "--config", config)
    return cwd / "runs" / "tiny"


def test_a_run_leaves_its_files_and_a_complete_summary(uninterrupted):
    names = {p.name for p in uninterrupted.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "sae",
        "checkpoints",
        "examples.jsonl",
        "density.json",
        "report.html",
    }
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["tokens"] == STEPS * 64 and summary["steps"] == STEPS
    assert (summary["d_in"], summary["d_sae"], summary["k"]) == (16, 256, 4)
    assert 0 < summary["l0"] <= 4 and 0 < summary["held_out"]["l0"] <= 4
    assert 0 < summary["fvu"] < 1 and 0 < summary["held_out"]["fvu"] < 1
    assert 0 <= summary["dead_fraction"] <= 1
    for key in ("seconds", "tokens_per_second", "architecture", "seed", "device", "versions"):
        assert summary[key] is not None, key
    rows = read_metrics(uninterrupted)
    assert float(rows[-1]["fvu"]) < float(rows[0]["fvu"])
    assert any(float(row["dead_fraction"]) > 0 for row in rows if row["dead_fraction"]), (
        "no latent died, so this does not test resuming AuxK"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, config, uninterrupted, seed):
    step = random.Random(seed).randint(16, STEPS - 8)
    code, _ = stop_at(tmp_path, step, signal.SIGKILL, "fit", "--config", config)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "runs/tiny/summary.json").exists()
    run(tmp_path, "fit", "--resume", "runs/tiny")
    assert_same_run(tmp_path / "runs/tiny", uninterrupted)


@pytest.mark.slow
def test_steps_per_call_does_not_change_the_run(tmp_path, config, uninterrupted):
    twos = ("--trainer.steps_per_call", "2", "--checkpoint_every", "14")
    code, _ = stop_at(tmp_path, 37, signal.SIGKILL, "fit", "--config", config, *twos)
    assert code == -signal.SIGKILL
    run(tmp_path, "fit", "--resume", "runs/tiny")
    assert_same_run(tmp_path / "runs/tiny", uninterrupted)


@pytest.mark.slow
def test_ctrl_c_saves_and_prints_how_to_continue(tmp_path, config, uninterrupted):
    code, error = stop_at(tmp_path, 24, signal.SIGINT, "fit", "--config", config)
    assert code == 130, error
    assert "go on with" in error and "fit --resume runs/tiny" in error
    assert "Traceback" not in error
    stopped = max(
        int(p.stem.removeprefix("step=")) for p in (tmp_path / "runs/tiny/checkpoints").iterdir()
    )
    assert f"stopped at step {stopped} of {STEPS}" in error
    run(tmp_path, "fit", "--resume", "runs/tiny")
    assert_same_run(tmp_path / "runs/tiny", uninterrupted)


@pytest.mark.slow
def test_a_run_killed_during_the_final_metrics_resumes(tmp_path, uninterrupted):
    """All steps are done, so resuming only computes the final metrics."""
    shutil.copytree(uninterrupted, tmp_path / "runs/tiny")
    before = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    for name in ("summary.json", "report.html", "examples.jsonl", "density.json"):
        (tmp_path / "runs/tiny" / name).unlink()
    shutil.rmtree(tmp_path / "runs/tiny/sae")
    run(tmp_path, "fit", "--resume", "runs/tiny")
    assert_same_run(tmp_path / "runs/tiny", uninterrupted)
    after = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    same = ("tokens", "steps", "seconds", "fvu", "l0", "dead_fraction", "held_out")
    assert {k: after[k] for k in same} == {k: before[k] for k in same}


def test_an_existing_run_is_not_overwritten(config, uninterrupted):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*")}
    done = run(uninterrupted.parents[1], "fit", "--config", config, code=2)
    assert done.stderr.count("\n") == 1
    assert "runs/tiny holds a finished run" in done.stderr and "--overwrite" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*")} == before


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, config, uninterrupted):
    """The system refuses files above 20 kB, as a full disk refuses all."""
    stop_at(tmp_path, 30, signal.SIGINT, "fit", "--config", config)
    run_folder = tmp_path / "runs/tiny"
    before = {p.name: p.read_bytes() for p in (run_folder / "checkpoints").iterdir()}
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    done = run(tmp_path, "fit", "--resume", "runs/tiny", code=2, preexec_fn=limit)
    assert done.stderr.startswith("error: checkpoint ") and done.stderr.count("\n") == 1
    assert "was not written" in done.stderr and "stays" in done.stderr
    after = {p.name: p.read_bytes() for p in (run_folder / "checkpoints").iterdir()}
    assert after == before
    run(tmp_path, "fit", "--resume", "runs/tiny")
    assert_same_run(run_folder, uninterrupted)
