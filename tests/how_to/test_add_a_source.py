"""docs/how-to/add-a-source.md: a vision source from outside the package trains as the page says."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from how_to_pages import code_blocks, read_page, run_python, train_arguments

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

PAGE = read_page("add-a-source")
SOURCE, TRAINING = code_blocks(PAGE, "python")
(CONFIG,) = code_blocks(PAGE, "yaml")
(COMMAND,) = code_blocks(PAGE, "bash")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vision.py").write_text(SOURCE)
    (tmp_path / "vision.yaml").write_text(CONFIG)
    return tmp_path


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
    metrics = ast.literal_eval(
        run_python("-c", TRAINING + checks, cwd=folder).stdout.splitlines()[0]
    )
    assert metrics["tokens"] == 800
    assert 0 < metrics["fvu"] < 1
    assert metrics["l0"] <= 8


def test_the_command_line_trains_and_reports_without_text(folder: Path) -> None:
    code = f"""
from sae.cli.main import main
assert main({train_arguments(COMMAND)}) == 0
assert main(["fit", "--config", "vision.yaml", "--name", "bad", "--data.source.layer", "2"]) == 2
"""
    error = run_python("-c", code, cwd=folder).stderr.strip().splitlines()[-1]
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
