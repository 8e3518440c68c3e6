from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_cases import CUDA, TRITON

pytest.importorskip("triton")


@pytest.mark.skipif(CUDA, reason="the Triton kernels run on the GPU itself here")
@pytest.mark.skipif(TRITON, reason="this is the process that runs them in the interpreter")
def test_every_case_of_this_folder_in_the_interpreter():
    """In a process of its own: TRITON_INTERPRET must be set before anything imports triton."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(Path(__file__).parent),
            "-k",
            "triton and not backend",
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": "-v"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout
