"""Follow docs/how-to/add-a-format.md literally, from a folder outside the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs/how-to/add-a-format.md").read_text(encoding="utf-8")
FORMAT, USE, SHARED_TESTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run_python(code: str, cwd: Path, module_folder: Path) -> str:
    """Run code in a process of its own and return what it prints."""
    path = os.pathsep.join([str(module_folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTEST_ADDOPTS": "-p no:cacheprovider", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_format_writes_and_reads(tmp_path):
    (tmp_path / "openai_names.py").write_text(FORMAT)
    check = "import torch\nx = torch.randn(9, 12)\nassert torch.equal(sae(x), again(x))\n"
    check += "assert again.metadata == {'model': 'gpt2'}\n"
    run_python(USE + check, tmp_path, tmp_path)


def test_the_shared_tests_pass_for_the_format(tmp_path):
    (tmp_path / "openai_names.py").write_text(FORMAT)
    printed = run_python(SHARED_TESTS + "assert status == 0\n", REPO, tmp_path)
    assert printed.startswith("......  "), printed
