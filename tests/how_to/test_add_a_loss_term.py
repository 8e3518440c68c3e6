"""Follow docs/how-to/add-a-loss-term.md literally, from a folder outside the package."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs/how-to/add-a-loss-term.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
TERM, TRAINING, TEST = [text for language, text in BLOCKS if language == "python"]
(COMMAND,) = [text for language, text in BLOCKS if language == "bash"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log_sum.py").write_text(TERM)
    (tmp_path / "test_log_sum.py").write_text(TEST)
    return tmp_path


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python in a process of its own, with `folder` on the path."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_python_trains_with_the_term_and_its_test_passes(folder: Path) -> None:
    metrics = ast.literal_eval(run_python(folder, "-c", TRAINING).stdout)
    assert 0 < metrics["fvu"] < 1
    tested = run_python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_log_sum.py")
    assert "2 passed" in tested.stdout


def test_the_command_line_trains_with_the_term(folder: Path) -> None:
    words = shlex.split(COMMAND.replace("\\\n", " "))
    assert words[:2] == ["python", "train.py"]
    words = [str(REPO / w) if w.startswith("configs/") else w for w in words[2:]]
    short = ["--trainer.max_steps", "30", "--data.batch_size", "128", "--checkpoint_every", "15"]
    short += ["--data.held_out_tokens", "256", "--trainer.accelerator", "cpu"]
    wrong = [word.replace("eps: 0.3", "eps: -1") for word in words]
    code = f"""
from sae.cli.main import main
assert main({words + short}) == 0
assert main({[*wrong, "--name", "wrong"]}) == 2
"""
    error = run_python(folder, "-c", code).stderr.strip().splitlines()[-1]
    assert "model.losses LogSum.eps=-1.0 must be positive" in error
    summary = json.loads((folder / "runs/log_sum/summary.json").read_text())
    assert summary["architecture"] == "Autoencoder+ReLU" and summary["steps"] == 30
