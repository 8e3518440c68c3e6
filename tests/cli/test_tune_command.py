"""The command `tune`: a sweep through Ray Tune on this machine."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from sae.cli.fit import fit
from sae.cli.main import main
from tiny import read_csv, read_metrics, run_settings, write_settings

SETTINGS = run_settings(
    {
        "name": "r",
        "model.optim": {"unit_norm": False},
        "trainer.max_steps": 16,
        "trainer.val_check_interval": 4,
        "checkpoint_every": 8,
    }
)


@pytest.mark.slow
def test_tune_stops_worse_trials_and_records_failed_ones(tmp_path, monkeypatch, capsys):
    ray = pytest.importorskip("ray", reason="needs ray[tune], which is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = write_settings(tmp_path, SETTINGS)
    args = ["tune", "--config", str(config), "--members-per-trial", "2", "--stop-early"]
    args += ["--grid", "model.optim.lr=0.01,0.003,1e-9,2e-9,1e12,1e13"]
    args += ["--cpus-per-trial", str(os.cpu_count())]  # one trial after another
    assert main(args) == 1  # a trial failed
    assert not ray.is_initialized()

    good, slow, broken = (tmp_path / f"runs/r-sweep/wave-{number}" for number in (1, 2, 3))
    table = {row["member"]: row for row in read_csv(tmp_path / "runs/r-sweep/sweep.csv")}
    for name in ("lr=0.01", "lr=0.003"):
        summary = json.loads((good / name / "summary.json").read_text())
        assert summary["steps"] == 16 and not table[name]["stopped"]
        assert table[name]["held_out_fvu"] == str(summary["held_out"]["fvu"])
        assert summary["learning_rate"] == float(name.partition("=")[2])
    for name in ("lr=1e-09", "lr=2e-09"):
        assert table[name]["stopped"] == "stopped early by Ray" and table[name]["steps"] == "4"
    assert (slow / "summary.json").is_file()  # so it does not run again
    for name in ("lr=1e+12", "lr=1e+13"):
        assert "failed" in table[name]["stopped"] and "diverged" in table[name]["stopped"]
    assert not (broken / "summary.json").exists()  # so `tune --resume` runs it again
    best = yaml.safe_load((tmp_path / "runs/r-sweep/best.yaml").read_text())
    assert best["model"]["optim"]["lr"] == 0.01

    # Training in a worker of Ray gives the same bits as anywhere else.
    assert fit(["--config", str(good / "lr=0.01/config.yaml"), "--runs", str(tmp_path)]) == 0
    assert read_metrics(tmp_path / "lr=0.01") == read_metrics(good / "lr=0.01")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "model.sae.k=2,4", "--stop-early"], "--grid model.sae.k the trials with the"),
        (["--grid", "model.sae.k=2,4", "--members-per-trial", "0"], "--members-per-trial 0; give"),
    ],
)
def test_bad_input_is_refused(flags, message, tmp_path, capsys):
    pytest.importorskip("ray", reason="needs ray[tune], which is not installed")
    assert (
        main(
            [
                "tune",
                "--config",
                str(write_settings(tmp_path, SETTINGS)),
                "--runs",
                str(tmp_path),
                *flags,
            ]
        )
        == 2
    )
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"]


def test_missing_ray_is_reported_with_its_install_command(tmp_path, monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "ray" else find(n))
    assert main(["tune", "--grid", "model.sae.k=2,4"]) == 2
    assert "pip install 'ray[tune]'" in capsys.readouterr().err
