"""docs/how-to/add-a-command.md: the command it adds works, with help, errors and suggestions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import sae.cli
from how_to_pages import REPO, code_blocks, read_page
from sae.cli.command import Command
from sae.cli.main import COMMANDS, main

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

FILE, LINE, SETTINGS, TEST = code_blocks(read_page("add-a-command"), "python")


@pytest.fixture(autouse=True)
def added(tmp_path, monkeypatch):
    """Add the file to the folder `sae/cli` and the line to the table, as the page says."""
    folder = tmp_path / "cli"
    folder.mkdir()
    (folder / "dead.py").write_text(FILE)
    monkeypatch.setattr(sae.cli, "__path__", [*sae.cli.__path__, str(folder)])
    for name, command in eval(f"{{{LINE}}}", {"Command": Command}).items():
        monkeypatch.setitem(COMMANDS, name, command)
    yield
    sys.modules.pop("sae.cli.dead", None)


@pytest.fixture
def finished(tmp_path) -> Path:
    """Return a run folder in which latents 1, 3 and 4 of 5 never fired."""
    (tmp_path / "density.json").write_text(json.dumps({"tokens": 5, "fired": [3, 0, 1, 0, 0]}))
    return tmp_path


def test_the_command_runs(finished, capsys):
    assert main(["dead", str(finished)]) == 0
    assert capsys.readouterr().out == "1 3 4\n"
    assert main(["dead", str(finished), "--limit", "2"]) == 0
    assert capsys.readouterr().out == "1 3\n"
    for flags in (["--count"], ["--count", "true"], ["--count=true"]):
        assert main(["dead", str(finished), *flags]) == 0
        assert capsys.readouterr().out == "3\n"


def test_help_has_a_description_and_an_example(capsys):
    with pytest.raises(SystemExit) as done:
        main(["dead", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0
    assert "List the latents" in text and "Example: python train.py dead runs/default" in text
    assert main(["--help"]) == 0
    assert "dead runs/x [--limit N]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dead", "x", "--limitt", "2"], "--limitt is not a flag; did you mean --limit?"),
        (["dead", "x", "--limit", "0"], "--limit 0; give at least 1"),
        (["dead", "x", "--limit", "two"], "--limit two is of the wrong kind"),
        (["dead"], "RUN is missing"),
        (["ded", "x"], "command 'ded' is not known; did you mean dead?"),
    ],
)
def test_wrong_use_is_one_line(args, message, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_the_settings_of_a_run_become_objects(monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    exec(SETTINGS, {})
    assert capsys.readouterr().out.startswith("superposition 2000 1024 TopK(d_sae=")


def test_its_own_test_passes(capsys, tmp_path):
    scope: dict = {}
    exec(TEST, scope)
    scope["test_dead_refuses_a_folder_without_a_run"](capsys, tmp_path)
