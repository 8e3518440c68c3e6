"""Bad settings: one line that names the setting and the value, exit code 2, nothing loaded."""

from __future__ import annotations

import pytest

from sae.cli.main import main

CASES = {
    "misspelt-in-class": (
        ["--model.sae.kk", "3"],
        "model.sae.kk is not a setting of TopK; did you mean k?",
    ),
    "misspelt-group": (["--model.optm.lr", "1"], "model.optm.lr .*did you mean model.optim.lr?"),
    "misspelt-in-group": (["--model.optim.lrr", "1"], "did you mean model.optim.lr?"),
    "misspelt-trainer": (["--trainer.max_stepss", "4"], "did you mean trainer.max_steps?"),
    "misspelt-source": (["--data.source.hoks", "[a]"], "hoks is not a setting of ModelActivations"),
    "misspelt-class": (
        ["--model.sae", "TopKK"],
        "model.sae=TopKK is not known; did you mean TopK?",
    ),
    "k-above-d_sae": (["--model.sae.k", "9000"], "model.sae.k=9000 exceeds model.sae.d_sae=8192"),
    "not-a-number": (["--model.sae.k", "x"], "model.sae.k=x is of the wrong kind; it takes int"),
    "not-a-float": (["--model.optim.lr", "a"], "model.optim.lr=a .* float or null"),
    "negative-lr": (["--model.optim.lr", "-1"], "model.optim.lr=-1.0 must be a positive number"),
    "no-batch": (["--data.batch_size", "0"], "data.batch_size=0"),
    "choice": (["--wandb", "maybe"], "wandb=maybe is not among its choices: 'off'"),
    "no-steps": (["--trainer.max_steps", "-1"], "trainer.max_steps=-1"),
    "no-such-accelerator": (["--trainer.accelerator", "gpuu"], "trainer: .*gpuu"),
    "no-config": (["--config", "nothere.yaml"], "config=.*nothere.yaml does not exist"),
    "no-command": (["fitt"], "command 'fitt' is not known"),
    "no-run": (["fit", "--resume", "nothere"], "--resume nothere: no config.yaml"),
    "no-report": (["report", "nothere"], "nothere is not the folder of a run"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_settings(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args, message = CASES[case]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    import re

    assert re.search(message, error), error
    assert not list(tmp_path.iterdir()), "a refused run leaves nothing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [\n", "Problems parsing config"),
        ("model:\n  sae: {class_path: TopK, init_args: {d_sae: 64}}\n", "model.sae.k is not set"),
        (
            "model:\n  optim: {lrr: 1}\n",
            "model.optim.lrr is not a setting; did you mean model.optim.lr",
        ),
    ],
    ids=["not-yaml", "k-missing", "misspelt"],
)
def test_bad_config_files(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    assert main(["fit", "--config", "c.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="exceeds"):
        main(["--model.sae.k", "9000", "--debug"])


def test_help_is_an_overview(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 30 and max(map(len, lines)) <= 100
