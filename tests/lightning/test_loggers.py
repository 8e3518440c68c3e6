"""metrics.csv always; TensorBoard and Weights & Biases when they are asked for."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys

import pytest

from sae.cli.main import main
from sae.runs.metrics_csv import MetricsCSV

VALIDATED = ["--trainer.val_check_interval", "4"]


def rows(file):
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_rows_are_merged_by_step_and_sorted(tmp_path):
    logger = MetricsCSV(tmp_path)
    logger.add({"fvu": 0.5}, step=4)
    logger.add({"held_out_fvu": 0.6}, step=4)
    logger.add({"fvu": 0.1 + 0.2}, step=8)
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "4", "fvu": "0.5", "held_out_fvu": "0.6"},
        {"step": "8", "fvu": "0.30000000000000004", "held_out_fvu": ""},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_resuming_drops_the_rows_that_will_be_made_again(tmp_path):
    first = MetricsCSV(tmp_path)
    for step in (4, 8, 12, 16):
        first.add({"fvu": 1 / step}, step=step)
    again = MetricsCSV(tmp_path, resume_step=9)
    again.add({"fvu": 0.5}, step=12)
    assert [(r["step"], r["fvu"]) for r in rows(tmp_path / "metrics.csv")] == [
        ("4", "0.25"),
        ("8", "0.125"),
        ("12", "0.5"),
    ]


def test_without_resume_an_old_file_is_not_read(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,fvu\n4,0.5\n")
    logger = MetricsCSV(tmp_path)
    logger.add({"fvu": 0.7}, step=2)
    assert [r["step"] for r in rows(tmp_path / "metrics.csv")] == ["2"]


@pytest.mark.parametrize(
    ("module", "flags"),
    [("wandb", ["--wandb", "offline"]), ("tensorboard", ["--tensorboard", "true"])],
)
def test_a_logger_that_is_not_installed(module, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == module else find(n))
    assert main(["fit", *flags]) == 2
    assert f"pip install {module}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "flags", "pattern"),
    [
        ("tensorboard", ["--tensorboard", "true"], "tensorboard/events.out.tfevents*"),
        ("wandb", ["--wandb", "offline"], "wandb/offline-run-*/*.wandb"),
    ],
)
def test_one_flag_turns_a_logger_on(module, flags, pattern, tmp_path, write_config, repo):
    pytest.importorskip(module)
    config = write_config(tmp_path)
    command = [sys.executable, str(repo / "train.py"), "fit", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    subprocess.run(
        [*command, "--trainer.max_steps", "8", *VALIDATED, *flags],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    # Final figures come after training has closed the loggers: TensorBoard begins another file.
    files = list((tmp_path / "runs/tiny").glob(pattern))
    assert len(files) == (2 if module == "tensorboard" else 1)
    assert all(b"held_out_fvu" in file.read_bytes() for file in files)
    assert len(rows(tmp_path / "runs/tiny/metrics.csv")) == 2
