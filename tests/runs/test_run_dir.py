"""The folder of a run: when a new run may use it, and where a run resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae.errors import UserError
from sae.runs.run_dir import RunDir


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run that wrote its settings and nothing else."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r/config.yaml").write_text("name: r\n")
    return RunDir(tmp_path / "r")


def add_checkpoint(run: RunDir, step: int) -> Path:
    file = run.checkpoint(step)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"")
    return file


def test_a_run_that_took_no_step_gives_way_to_its_retry(run):
    (run.path / "notes.txt").write_text("mine")
    (run.path / "metrics.csv").write_text("step,loss\n")
    run.start(overwrite=False)
    assert (run.path / "notes.txt").exists(), "nothing is removed without --overwrite"


def test_a_folder_without_a_run_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDir(tmp_path).start(overwrite=True)
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("place", ["metrics.csv", "member/metrics.csv"])
def test_a_run_with_a_metrics_row_is_not_written_over(run, place):
    (run.path / place).parent.mkdir(exist_ok=True)
    (run.path / place).write_text("step,loss\n4,0.5\n")
    with pytest.raises(UserError, match=r"holds an unfinished run; choose another"):
        run.start(overwrite=False)
    run.start(overwrite=True)
    assert not run.path.exists()


def test_a_run_with_a_checkpoint_is_not_written_over(run):
    add_checkpoint(run, 100)
    add_checkpoint(run, 20)
    with pytest.raises(UserError, match=r"unfinished run at step 100; continue it with"):
        run.start(overwrite=False)


def test_a_finished_run_is_not_written_over(run):
    run.summary.write_text("{}")
    with pytest.raises(UserError, match="holds a finished run"):
        run.start(overwrite=False)


def test_resume_starts_from_the_newest_checkpoint(run):
    newest = add_checkpoint(run, 100)
    add_checkpoint(run, 20)
    (run.path / "checkpoints/step=x.ckpt").write_text("")
    assert run.resume_point() == (100, newest)


def test_resume_refuses_a_folder_without_a_checkpoint(run, tmp_path):
    with pytest.raises(UserError, match="ended before its first checkpoint"):
        run.resume_point()
    with pytest.raises(UserError, match="there is no config.yaml"):
        RunDir(tmp_path / "nothing").resume_point()
