"""metrics.csv always; TensorBoard and Weights & Biases when they are asked for."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys

import pytest

from sae.cli.main import main

VALIDATED = ["--trainer.val_check_interval", "4"]


def rows(file):
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


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
