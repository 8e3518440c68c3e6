"""Run the cases of this folder that need Triton in its interpreter, on machines without a GPU.

Each file runs in a process of its own, because TRITON_INTERPRET must be set before anything imports
triton. The files are separate cases here, so that several workers can share them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_cases import CUDA, TRITON

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(CUDA, reason="the Triton kernels run on the GPU itself here"),
    pytest.mark.skipif(TRITON, reason="this is the process that runs them in the interpreter"),
]

HERE = Path(__file__).parent
WITHOUT_TRITON_CASES = {
    "test_aux_error.py",
    "test_backend.py",
    "test_codes.py",
    "test_compile.py",
    "test_encode_unrolled.py",
    "test_interpreter.py",
    "test_ops.py",
    "test_pre_act_loss.py",
    "test_public_ops.py",
    "test_thread_invariance.py",
}
FILES = sorted({path.name for path in HERE.glob("test_*.py")} - WITHOUT_TRITON_CASES)
ALL_SLOW = {"test_step.py"}
IN_MAKE_TEST = {"test_encode_topk.py"}
"""These run in `make test`; the others, some minutes of a core, run in `make test-all`."""
NO_TESTS_COLLECTED = 5


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments],
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("file", "speed"),
    [
        pytest.param(
            file,
            speed,
            marks=[pytest.mark.slow] if speed == "slow" or file not in IN_MAKE_TEST else [],
        )
        for file in FILES
        for speed in ("fast", "slow")
    ],
)
def test_triton_cases_pass_in_the_interpreter(file, speed):
    """The cases marked slow in the interpreter (`kernel_cases`) run in `make test-all`."""
    selection = ["-m", "slow" if speed == "slow" else "not slow"]
    if not file.endswith("_on_gpu_path.py"):  # where every case needs Triton
        selection += ["-k", "triton"]
    done = run_pytest(str(HERE / file), *selection)
    output = done.stdout + done.stderr
    if done.returncode == NO_TESTS_COLLECTED and (speed == "slow" or file in ALL_SLOW):
        return
    assert done.returncode == 0, output
    assert "passed" in done.stdout and "skipped" not in done.stdout, output


@pytest.mark.slow
def test_the_other_files_have_no_triton_cases():
    # The tests of these two have "triton" in their names, but no case that runs it.
    named_after_it = {"test_backend.py", "test_interpreter.py"}
    files = [str(HERE / file) for file in WITHOUT_TRITON_CASES - named_after_it]
    done = run_pytest("--collect-only", "-k", "triton", *files)
    assert done.returncode == NO_TESTS_COLLECTED, done.stdout + done.stderr
