"""metrics.csv: appended, merged by step, and exact across a resume."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sae.runs.metrics_csv import MetricsCSV, read_rows


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def write_run(folder: Path, first: int, last: int, resume_step: int | None = None) -> bytes:
    """Log every 4 steps and validate every 12; return the bytes of the file."""
    metrics = MetricsCSV(folder, resume_step=resume_step)
    for step in range(first, last + 1, 4):
        metrics.add({"loss": 1 / step, "fvu": 0.1 + 0.2 * step}, step=step)
        if step % 12 == 0:
            metrics.add({"held_out_fvu": 2 / step}, step=step)
        if step == 20:
            metrics.add({"late, quoted": 3.0}, step=step)
    return (folder / "metrics.csv").read_bytes()


def test_values_of_one_step_share_a_row(tmp_path):
    metrics = MetricsCSV(tmp_path)
    metrics.add({"fvu": 0.5}, step=4)
    metrics.add({"held_out_fvu": 0.6}, step=4)
    metrics.add({"fvu": 0.1 + 0.2}, step=8)
    assert rows(tmp_path) == [
        {"step": "4", "fvu": "0.5", "held_out_fvu": "0.6"},
        {"step": "8", "fvu": "0.30000000000000004", "held_out_fvu": ""},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_value_logged_twice_for_a_step_is_replaced(tmp_path):
    metrics = MetricsCSV(tmp_path)
    metrics.add({"fvu": 0.123456789}, step=4)
    metrics.add({"fvu": 0.5}, step=4)  # a shorter line
    metrics.add({"fvu": 0.25}, step=8)
    assert (tmp_path / "metrics.csv").read_text() == "step,fvu\n4,0.5\n8,0.25\n"


def test_rows_are_appended_and_only_a_new_column_rewrites_the_file(tmp_path):
    metrics = MetricsCSV(tmp_path)
    metrics.add({"fvu": 0.5}, step=1)
    inode = (tmp_path / "metrics.csv").stat().st_ino
    for step in range(2, 50):
        metrics.add({"fvu": 1 / step}, step=step)
    assert (tmp_path / "metrics.csv").stat().st_ino == inode, "the file was replaced"
    metrics.add({"held_out_fvu": 0.6}, step=49)
    assert (tmp_path / "metrics.csv").stat().st_ino != inode
    assert [row["step"] for row in rows(tmp_path)] == [str(step) for step in range(1, 50)]


@pytest.mark.parametrize("resume_step", [2, 5, 9, 12, 13, 22, 32])
def test_resumed_file_has_the_bytes_of_an_uninterrupted_run(tmp_path, resume_step):
    uninterrupted = write_run(tmp_path / "one", 4, 36)
    write_run(tmp_path / "two", 4, 32)
    resumed = write_run(tmp_path / "two", resume_step // 4 * 4 + 4, 36, resume_step=resume_step)
    assert resumed == uninterrupted


@pytest.mark.parametrize("torn", ["40,0.02", "40,0.02,\n", "4", "40,0.025,8.1,0.05,,\n,,\n"])
def test_resume_drops_a_line_that_a_crash_left_incomplete(tmp_path, torn):
    uninterrupted = write_run(tmp_path / "one", 4, 44)
    write_run(tmp_path / "two", 4, 36)
    with (tmp_path / "two/metrics.csv").open("a") as handle:
        handle.write(torn)
    assert write_run(tmp_path / "two", 40, 44, resume_step=39) == uninterrupted


def test_a_file_cut_anywhere_can_be_read(tmp_path):
    content = write_run(tmp_path, 4, 24)
    complete = read_rows(tmp_path / "metrics.csv")
    for length in range(len(content)):
        (tmp_path / "metrics.csv").write_bytes(content[:length])
        count = max(content[:length].count(b"\n") - 1, 0)  # less the header
        assert read_rows(tmp_path / "metrics.csv") == complete[:count]


def test_a_new_run_does_not_read_an_old_file(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,fvu\n4,0.5\n")
    MetricsCSV(tmp_path).add({"fvu": 0.7}, step=2)
    assert [row["step"] for row in rows(tmp_path)] == ["2"]
