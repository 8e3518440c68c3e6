"""The speed benchmark measures, refuses what is red, and runs from a bare tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks import plot
from benchmarks import results_io as record
from benchmarks import speed_tables as speed
from benchmarks import step_and_op_speed as run
from sae.errors import UserError

REPO = Path(__file__).resolve().parent.parent
TINY = ["--shape", "16,64,4,32", "--seconds", "0.1", "--threads", "1"]


def test_a_step_is_timed_and_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "red", lambda *_: "")  # tests within tests take half a minute
    run.main(["--step", "--rule", "topk", "--provider", "ours (", *TINY, "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*.csv")
    (row,) = speed.read(file)
    assert (row.op, row.provider, row.mode) == ("step", "ours (bf16 moments)", "topk")
    assert row.shape == (16, 64, 4, 32) and row.threads == 1
    assert 0 < row.ms_p20 <= row.ms_p50 <= row.ms_p80
    assert row.times_product == pytest.approx(row.ms_p50 / row.product_ms, rel=1e-3)
    assert 0 < row.roofline < 1 and row.import_mib > row.peak_mib - 1
    assert row.command.startswith("python -m benchmarks.step_and_op_speed --step")
    assert json.loads(file.with_suffix(".json").read_text())[0]["provider"] == row.provider
    assert "ours (bf16 moments)" in file.with_suffix(".md").read_text()
    picture = plot.draw(file)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_op_is_timed_and_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "red", lambda *_: "")
    run.main(["--op", "encode_topk", "--provider", "ours", *TINY, "--out", str(tmp_path)])
    rows = speed.read(next(tmp_path.glob("*.csv")))
    assert [row.mode for row in rows] == ["forward", "backward"]
    assert 0 <= rows[0].max_err < 1e-5 and rows[0].tflops > 0


def test_no_speed_without_green_tests(tmp_path, monkeypatch):
    red = tmp_path / "test_red.py"
    red.write_text("def test_red():\n    assert False, 'wrong gradient'\n")
    monkeypatch.setattr(run, "STEP_TESTS", (str(red),))
    with pytest.raises(UserError, match="no speed of a step is printed(?s:.*)wrong gradient"):
        run.main(["--step", *TINY, "--out", str(tmp_path)])
    assert not list(tmp_path.glob("*.csv"))


def test_a_record_of_red_tests_counts_too(tmp_path):
    """On a GPU the tests ran before; here is what pytest wrote of them."""
    tests = tmp_path / "tests.xml"
    case = '<testcase classname="tests.gpu.test_step_on_gpu" name="test_{}">{}</testcase>'
    for inside, found in (("", ""), ("<failure/>", "test_b")):
        cases = case.format("a", "") + case.format("b", inside)
        tests.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        args = run.argparse.Namespace(tested=tests)
        assert run.red(args, "step", ()) == found


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--step", "--shape", "1,2"], "--shape 1,2"),
        (["--step", "--rule", "topq"], "--rule topq"),
        (["--op", "encode"], "--op encode"),
        (["--step", "--device", "cuda"], "--device cuda"),
    ],
)
def test_wrong_arguments_name_themselves(args, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run.main([*args, "--out", str(tmp_path)])


BLOCKED = "wandb jsonargparse hypothesis rich jinja2 scipy matplotlib lightning sae_workbench"


def test_gpu_parts_need_little_more_than_torch(tmp_path):
    """benchmarks/gpu.sh is for a machine where this project and most of its libraries are not
    installed: what it runs imports none of them."""
    (tmp_path / "sae_kernels").symlink_to(REPO / "kernels")
    for name in BLOCKED.split():
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    environment = {**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import benchmarks.step_and_op_speed, sae.training.cuda_graph, sae_kernels.adam",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "tests/kernels", "--collect-only", "-q"]
        + ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert collected.returncode == 0, collected.stdout[-3000:]
    assert "test_step_on_gpu" in collected.stdout


def test_gpu_sh_says_that_there_is_no_gpu(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        ["bash", str(REPO / "benchmarks" / "gpu.sh")],
        env={**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no CUDA device" in done.stderr


def test_a_row_takes_the_place_of_an_earlier_run_of_the_same(tmp_path):
    file = tmp_path / "rows.csv"
    values = {
        field.name: {"str": "a, b", "int": 1, "float": 0.5}[field.type]
        for field in fields(record.Row)
    }
    first, other = record.Row(**values), record.Row(**{**values, "seed": 2})
    record.add(file, first)
    record.add(file, other)
    again = record.Row(**{**values, "held_out_fvu": 0.25})
    assert record.add(file, again) == [other, again] == record.read(file)
    assert record.how([first, other]).count("- Command: `a, b`") == 1
