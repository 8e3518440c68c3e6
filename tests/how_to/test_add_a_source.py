"""docs/how-to/add-a-source.md: a vision source from outside the package trains as the page says."""

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
PAGE = (REPO / "docs/how-to/add-a-source.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
SOURCE, TRAINING = [text for language, text in BLOCKS if language == "python"]
(CONFIG,) = [text for language, text in BLOCKS if language == "yaml"]
(COMMAND,) = [text for language, text in BLOCKS if language == "bash"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vision.py").write_text(SOURCE)
    (tmp_path / "vision.yaml").write_text(CONFIG)
    return tmp_path


def run(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Run `code` in a process of its own, with `folder` on the path."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_python_trains_on_the_source(folder: Path) -> None:
    checks = """
import torch
again = VisionActivations(layer=1)
again.setup()
later, first = again.block("train", 1, 100, 0), again.block("train", 0, 100, 0)
assert torch.equal(later.acts["blocks.1"], source.block("train", 1, 100, 0).acts["blocks.1"])
assert not torch.equal(later.acts["blocks.1"], first.acts["blocks.1"])
assert set(later.provenance) == {"image", "patch"}
held_out = [source.block("held_out", index, 500, 0) for index in (0, 1, 2)]
assert [len(block) for block in held_out] == [500, 300, 0]
assert min(held_out[0].provenance["image"]) >= 200 > max(later.provenance["image"])
"""
    metrics = ast.literal_eval(run(folder, TRAINING + checks).stdout.splitlines()[0])
    assert metrics["tokens"] == 800
    assert 0 < metrics["fvu"] < 1
    assert metrics["l0"] <= 8


def test_the_command_line_trains_and_reports_without_text(folder: Path) -> None:
    words = shlex.split(COMMAND)
    assert words[:2] == ["python", "train.py"]
    code = f"""
from sae.cli.main import main
assert main({words[2:]}) == 0
assert main(["fit", "--config", "vision.yaml", "--name", "bad", "--data.source.layer", "2"]) == 2
"""
    error = run(folder, code).stderr.strip().splitlines()[-1]
    assert "data.source.layer=2 does not exist; give 0 to 1" in error
    result = folder / "runs/vision"
    summary = json.loads((result / "summary.json").read_text())
    assert summary["steps"] == 30 and summary["architecture"] == "Autoencoder+TopK"
    assert 0 < summary["held_out"]["fvu"] < 1
    assert (result / "report.html").is_file()
    metadata = json.loads((result / "sae/sae.json").read_text())["metadata"]
    assert metadata["hooks"] == ["blocks.1"]
    # Examples and downstream metrics need text, which this source does not have.
    assert not (result / "examples.jsonl").exists()
    assert not any(name.startswith(("ce_", "output_cosine")) for name in summary["held_out"])
