"""Follow docs/how-to/add-a-loss-term.md literally, from a folder outside the package."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from how_to_pages import SHORT, code_blocks, read_page, run_python, train_arguments

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

PAGE = read_page("add-a-loss-term")
TERM, TRAINING, TEST = code_blocks(PAGE, "python")
(COMMAND,) = code_blocks(PAGE, "bash")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log_sum.py").write_text(TERM)
    (tmp_path / "test_log_sum.py").write_text(TEST)
    return tmp_path


def test_python_trains_with_the_term_and_its_test_passes(folder: Path) -> None:
    metrics = ast.literal_eval(run_python("-c", TRAINING, cwd=folder).stdout)
    assert 0 < metrics["fvu"] < 1
    tested = run_python("-m", "pytest", "-q", "test_log_sum.py", cwd=folder)
    assert "2 passed" in tested.stdout


def test_the_command_line_trains_with_the_term(folder: Path) -> None:
    words = train_arguments(COMMAND)
    wrong = [word.replace("eps: 0.3", "eps: -1") for word in words]
    code = f"""
from sae.cli.main import main
assert main({words + SHORT}) == 0
assert main({[*wrong, "--name", "wrong"]}) == 2
"""
    error = run_python("-c", code, cwd=folder).stderr.strip().splitlines()[-1]
    assert "model.losses LogSum.eps=-1.0 must be positive" in error
    summary = json.loads((folder / "runs/log_sum/summary.json").read_text())
    assert summary["architecture"] == "Autoencoder+ReLU" and summary["steps"] == 30
