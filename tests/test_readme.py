"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sae.cli.config import parse_config
from sae.cli.main import main

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.split("#")[0].strip()
]


def test_the_two_commands_come_first():
    assert COMMANDS[:2] == ["make train", "make test"]
    assert "make test" in (REPO / ".ci/run").read_text()
    targets = re.findall(r"^(\w[\w-]*):", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert {"train", "test", "test-all", "lint", "bench"} <= set(targets)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python train.py")])
def test_commands_parse(command, monkeypatch):
    monkeypatch.chdir(REPO)
    args = shlex.split(command)[2:]
    if args[:1] != ["fit"] or "--help" in args:
        return
    if "--resume" not in args:
        parse_config(args[1:])


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPO / target).exists(), target


def test_every_config_is_in_the_table():
    assert "(configs/recipes)" in README
    for file in (REPO / "configs").rglob("*.yaml"):
        if file.parent.name not in ("recipes", "sweeps"):
            assert f"(configs/{file.relative_to(REPO / 'configs')})" in README, file.name


def test_ten_lines_from_a_sentence_to_its_latents(tmp_path, write_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    assert main(["fit", "--config", str(config), "--name", "default"]) == 0
    code = next(block for language, block in BLOCKS if language == "python" and "SAE.load" in block)
    assert len(code.strip().splitlines()) <= 12
    code = code.replace("A list is a mutable sequence of items.", "w1 w2 w3 w4")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^latent \d+: \d", done.stdout, re.MULTILINE)) == 5
    assert "«" in done.stdout, "no example shows the token that a latent fired on"
