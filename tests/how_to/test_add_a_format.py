"""Follow docs/how-to/add-a-format.md literally, from a folder outside the package."""

from __future__ import annotations

import pytest

from how_to_pages import REPO, code_blocks, read_page, run_python

pytestmark = pytest.mark.slow  # runs the page in new processes

FORMAT, USE, SHARED_TESTS = code_blocks(read_page("add-a-format"), "python")


def test_the_format_writes_and_reads(tmp_path):
    (tmp_path / "openai_names.py").write_text(FORMAT)
    check = "import torch\nx = torch.randn(9, 12)\nassert torch.equal(sae(x), again(x))\n"
    check += "assert again.metadata == {'model': 'gpt2'}\n"
    run_python("-c", USE + check, cwd=tmp_path)


def test_the_shared_tests_pass_for_the_format(tmp_path):
    (tmp_path / "openai_names.py").write_text(FORMAT)
    code = SHARED_TESTS + "assert status == 0\n"
    printed = run_python("-c", code, cwd=REPO, module_folder=tmp_path).stdout
    assert printed.startswith("......  "), printed
