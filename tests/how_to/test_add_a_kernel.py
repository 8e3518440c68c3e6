"""docs/how-to/add-a-kernel.md: its files, written as they stand there, pass their own test."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

pytest.importorskip("triton")

PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/add-a-kernel.md").read_text()
# A file's name opens the text before its block.
FILES = dict(re.findall(r"\n`(\w+\.py)`.*?```python\n(.*?)```", PAGE, re.DOTALL))
(COMMAND,) = re.findall(r"```bash\n(.*?)\n```", PAGE, re.DOTALL)


def test_the_page_has_the_op_its_halves_and_its_test():
    assert list(FILES) == [
        "unit_rows.py",
        "unit_rows_cpu.py",
        "unit_rows_gpu.py",
        "test_unit_rows.py",
    ]


def test_the_files_pass_their_test_in_the_interpreter(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    setting, program, *arguments = shlex.split(COMMAND)
    assert (setting, program) == ("TRITON_INTERPRET=1", "python")
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout, done.stdout
