"""TensorBoard and Weights & Biases loggers: when they are built, and what they log."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from sae.cli.main import main
from sae.lightning.loggers import build_loggers, close_loggers, log_row, log_settings
from tiny import read_metrics, run_settings, write_settings

VALIDATED = ["--trainer.val_check_interval", "4"]
SETTINGS = run_settings({"name": "r", "trainer.val_check_interval": 4, "checkpoint_every": 4})


@pytest.mark.parametrize(
    ("module", "flags"),
    [("wandb", ["--wandb", "offline"]), ("tensorboard", ["--tensorboard", "true"])],
)
def test_missing_logger_package_is_named(module, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == module else find(n))
    assert main(["fit", *flags]) == 2
    assert f"pip install {module}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_logger_is_built_unless_asked_for(tmp_path):
    assert build_loggers("r", tmp_path) == []


class RecordingLogger:
    """A logger that records its calls."""

    def __init__(self) -> None:
        self.calls = []

    def log_hyperparams(self, settings) -> None:
        self.calls.append(("settings", settings))

    def log_metrics(self, row, step) -> None:
        self.calls.append(("row", row, step))

    def save(self) -> None:
        self.calls.append(("save",))


def test_every_logger_gets_settings_and_rows():
    loggers = [RecordingLogger(), RecordingLogger()]
    log_settings(loggers, {"seed": 1})
    log_row(loggers, {"fvu": 0.5}, 4)
    close_loggers(loggers)
    for logger in loggers:
        assert logger.calls == [("settings", {"seed": 1}), ("row", {"fvu": 0.5}, 4), ("save",)]


@pytest.fixture
def fake_wandb(monkeypatch):
    """Replace `wandb.init` by a function that starts nothing; return the list of its runs."""
    wandb = pytest.importorskip("wandb")
    started = []

    class Run:
        def __init__(self, **options) -> None:
            self.options, self.finished = options, False
            self.id = options["id"] or f"new{len(started)}"
            started.append(self)

        def finish(self) -> None:
            self.finished = True

    monkeypatch.setattr(wandb, "init", Run)
    for name in ("WANDB_PROJECT", "WANDB_SWEEP_ID", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return started


def test_resumed_run_continues_its_wandb_run(tmp_path, fake_wandb):
    ids = []
    for _ in range(2):
        (logger,) = build_loggers("r", tmp_path, wandb="online")
        ids.append(logger.experiment.id)
        close_loggers([logger])
    first, second = fake_wandb
    assert ids == ["new0", "new0"] and second.options["resume"] == "allow"
    assert (tmp_path / "wandb_run_id").read_text() == "new0\n"
    assert first.finished and second.finished


def test_overwritten_run_starts_a_new_wandb_run(tmp_path, fake_wandb):
    (tmp_path / "wandb_run_id").write_text("old\n")
    (logger,) = build_loggers("r", tmp_path, wandb="online")
    (tmp_path / "wandb_run_id").unlink()  # what --overwrite does, after the logger is built
    assert logger.experiment.id == "new0"


@pytest.mark.parametrize(
    ("flags", "environment", "project", "entity"),
    [
        ({}, {}, "sae", None),
        ({}, {"WANDB_PROJECT": "theirs"}, "theirs", None),
        ({"wandb_project": "p", "wandb_entity": "e"}, {"WANDB_PROJECT": "theirs"}, "p", "e"),
        ({"wandb_project": "p", "wandb_entity": "e"}, {"WANDB_SWEEP_ID": "s"}, None, None),
    ],
)
def test_wandb_project_and_entity_come_from_flags_then_environment(
    flags, environment, project, entity, tmp_path, fake_wandb, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (logger,) = build_loggers("r", tmp_path, wandb="online", **flags)
    options = logger.experiment.options
    assert (options["project"], options["entity"]) == (project, entity)


@pytest.mark.slow
def test_offline_wandb_run_is_continued_without_a_warning(tmp_path, repo):
    """A run and its resume from the checkpoint before the last, each in its own process."""
    pytest.importorskip("wandb")
    write_settings(tmp_path, SETTINGS)
    run = tmp_path / "runs/r"

    def train(*flags: str) -> str:
        done = subprocess.run(
            [sys.executable, str(repo / "train.py"), "fit", *flags],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout + done.stderr

    flags = ["--config", "c.yaml", "--wandb", "offline", "--wandb_project", "mine"]
    printed = train(*flags)
    (run / "checkpoints/step=12.ckpt").unlink()
    (run / "summary.json").unlink()
    printed += train("--resume", "runs/r")
    assert "warning" not in printed.lower(), printed
    assert "mine" in (run / "config.yaml").read_text()
    name = (run / "wandb_run_id").read_text().strip()
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{name}.wandb"] * 2
    assert b"val_check_interval" in files[0].read_bytes(), "the settings are logged"


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
    # The final metrics are logged after Lightning closed the loggers, so TensorBoard starts another
    # file.
    files = list((tmp_path / "runs/tiny").glob(pattern))
    assert len(files) == (2 if module == "tensorboard" else 1)
    assert all(b"held_out_fvu" in file.read_bytes() for file in files)
    assert len(read_metrics(tmp_path / "runs/tiny")) == 2
