from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("compile_ahead.py")
KERNELS = Path(__file__).parents[2] / "kernels" / "gpu"
# `launch` and `pre_acts` hold what the kernels share, and no kernel.
MODULES = sorted({path.stem for path in KERNELS.glob("*.py")} - {"__init__", "launch", "pre_acts"})
IN_MAKE_TEST = {"decode_error"}
"""The others, a minute of a core, are compiled in `make test-all`."""


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=[] if module in IN_MAKE_TEST else pytest.mark.slow)
        for module in MODULES
    ],
)
def test_kernels_compile_for_sm_80_sm_90_and_sm_100(tmp_path, module):
    """The compiler refuses some code that the interpreter runs; see compile_ahead.py."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), module],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"},
        capture_output=True,
        text=True,
    )
    failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert done.returncode == 0, "\n".join(failed) + done.stderr
    assert done.stdout, "nothing was compiled"
