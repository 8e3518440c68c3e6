"""docs/how-to/add-a-kernel.md: its files, written as they stand there, pass their own test."""

from __future__ import annotations

import re
import shlex

import pytest

from how_to_pages import code_blocks, read_page, run_python

pytestmark = pytest.mark.slow  # runs the page in new processes

pytest.importorskip("triton")

PAGE = read_page("add-a-kernel")
# A file's name opens the text before its block.
FILES = dict(re.findall(r"\n`(\w+\.py)`.*?```python\n(.*?)```", PAGE, re.DOTALL))
(COMMAND,) = code_blocks(PAGE, "bash")


def test_the_page_has_the_op_its_halves_and_its_test():
    assert list(FILES) == [
        "unit_rows.py",
        "unit_rows_cpu.py",
        "unit_rows_gpu.py",
        "test_unit_rows.py",
    ]


def test_the_files_pass_their_test_in_the_interpreter(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    setting, program, *arguments = shlex.split(COMMAND)
    assert (setting, program) == ("TRITON_INTERPRET=1", "python")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = run_python(*arguments, cwd=tmp_path)
    assert "7 passed" in done.stdout, done.stdout
