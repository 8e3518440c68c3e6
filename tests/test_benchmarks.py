"""The speed benchmark times only what passes its tests, and needs little more than torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks import offset, plot, results_io, speed_tables
from benchmarks import step_and_op_speed as run
from benchmarks.command import run_command
from sae.errors import UserError

REPO = Path(__file__).resolve().parent.parent
TINY = ["--shape", "16,64,4,32", "--seconds", "0.1", "--threads", "1"]


@pytest.mark.slow
def test_step_benchmark_writes_csv_json_markdown_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "failing_tests", lambda *_: "")  # these tests take half a minute
    run.main(["--step", "--rule", "topk", "--provider", "ours (", *TINY, "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*.csv")
    (row,) = speed_tables.read(file)
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


def test_op_benchmark_times_both_passes_and_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "failing_tests", lambda *_: "")
    run.main(["--op", "encode_topk", "--provider", "ours", *TINY, "--out", str(tmp_path)])
    rows = speed_tables.read(next(tmp_path.glob("*.csv")))
    assert [row.mode for row in rows] == ["forward", "backward"]
    assert 0 <= rows[0].max_err < 1e-5 and rows[0].tflops > 0


def test_steps_are_not_timed_if_their_tests_fail(tmp_path, monkeypatch):
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_failing():\n    assert False, 'wrong gradient'\n")
    monkeypatch.setattr(run, "STEP_TESTS", (str(failing),))
    with pytest.raises(UserError, match="steps are not timed(?s:.*)wrong gradient"):
        run.main(["--step", *TINY, "--out", str(tmp_path)])
    assert not list(tmp_path.glob("*.csv"))


def test_failures_in_a_junit_file_count(tmp_path):
    """On a GPU the tests ran before, and pytest wrote their results to a file."""
    tests = tmp_path / "tests.xml"
    case = '<testcase classname="tests.gpu.test_step_on_gpu" name="test_{}">{}</testcase>'
    for inside, expected in (("", ""), ("<failure/>", "test_b")):
        cases = case.format("a", "") + case.format("b", inside)
        tests.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        args = run.argparse.Namespace(tested=[tests, tmp_path / "missing.xml"])
        assert run.failing_tests(args, "step", ()) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--step", "--shape", "1,2"], "--shape 1,2"),
        (["--step", "--rule", "topq"], "--rule topq"),
        (["--op", "encode"], "--op encode"),
        (["--step", "--device", "cuda"], "--device cuda"),
    ],
)
def test_errors_name_the_wrong_argument(args, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run.main([*args, "--out", str(tmp_path)])


BLOCKED = "wandb jsonargparse hypothesis rich jinja2 scipy matplotlib lightning sae_workbench"


def test_an_op_depends_only_on_tests_that_concern_it(tmp_path):
    case = '<testcase classname="tests.gpu.{}" name="{}">{}</testcase>'
    cases = [
        case.format("test_kernels_on_gpu", "test_encode[a]", ""),
        case.format("test_kernels_on_gpu", "test_adam[a]", "<failure/>"),
        case.format("test_step_on_gpu", "test_peak_memory", "<failure/>"),
    ]
    tests = tmp_path / "tests.xml"
    tests.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    args = run.argparse.Namespace(tested=[tests])
    assert run.failing_tests(args, "encode_topk", ()) == ""
    assert run.failing_tests(args, "update", ()) == "test_adam[a]"
    assert run.failing_tests(args, "step", ()) == "test_adam[a]"
    assert "no test of decode ran" in run.failing_tests(args, "decode", ())


@pytest.mark.slow
def test_gpu_parts_need_little_more_than_torch(tmp_path):
    """benchmarks/gpu.sh runs on machines where this project and most libraries are missing."""
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


def test_gpu_sh_refuses_a_machine_without_gpu(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        ["bash", str(REPO / "benchmarks" / "gpu.sh")],
        env={**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no CUDA device" in done.stderr


def test_a_row_replaces_an_earlier_row_with_its_key(tmp_path):
    file = tmp_path / "rows.csv"
    values = {
        field.name: {"str": "a, b", "int": 1, "float": 0.5}[field.type]
        for field in fields(results_io.Row)
    }
    first, other = results_io.Row(**values), results_io.Row(**{**values, "seed": 2})
    results_io.add_row(file, first)
    results_io.add_row(file, other)
    again = results_io.Row(**{**values, "held_out_fvu": 0.25})
    assert results_io.add_row(file, again) == [other, again] == results_io.read_rows(file)
    assert results_io.provenance_lines([first, other]).count("- Command: `a, b`") == 1


def test_a_wrong_argument_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.offset", "--recipe", "nope"])
    with pytest.raises(SystemExit) as ended:
        run_command(offset.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: --recipe nope is not known") and error.count("\n") == 1
