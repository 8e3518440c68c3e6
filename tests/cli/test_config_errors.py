"""Bad settings end with one line that names the setting and the value, and exit code 2."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sae.cli.config import parse_config
from sae.cli.fit import with_config
from sae.cli.main import COMMANDS, main
from sae.sweep.spec import SweepSpec

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
    "no-such-accelerator": (["--trainer.accelerator", "gpuu"], "trainer.accelerator=.gpuu. is not"),
    "no-config": (["--config", "nothere.yaml"], "config=.*nothere.yaml does not exist"),
    "no-command": (["fitt"], "command 'fitt' is not known; did you mean fit?"),
    "no-run": (["fit", "--resume", "nothere"], "--resume nothere: no config.yaml"),
    "not-a-picture": (["report", "x", "out.jpg"], "CURVES out.jpg is not a .png file; give a name"),
    "no-report": (["report", "nothere"], "nothere is not the folder of a run"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_settings_are_refused(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args, message = CASES[case]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
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
def test_bad_config_files_are_refused(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    assert main(["fit", "--config", "c.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="exceeds"):
        main(["--model.sae.k", "9000", "--debug"])


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 35 and max(map(len, lines)) <= 100
    for command in COMMANDS.values():
        assert any(command.usage in line and command.summary in line for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_a_description_and_an_example(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0
    assert f"train.py {name} " in text and "xample: python train.py" in text


def test_help_loads_no_heavy_library():
    """Only `fit --help` does: its flags are those of classes."""
    code = (
        "import sys, importlib\n"
        "from sae.cli.main import COMMANDS\n"
        "for command in COMMANDS.values():\n"
        "    importlib.import_module(command.module).parser()\n"
        "print([m for m in ('torch', 'lightning', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("args", "overwrite"),
    [([], False), (["--overwrite"], True), (["--overwrite", "true"], True)]
    + [(["--overwrite=false"], False), (["--overwrite", "--seed", "1"], True)],
)
def test_a_bare_boolean_flag_means_true(args, overwrite):
    settings, _ = with_config(args)
    assert parse_config(settings).options.overwrite is overwrite


def test_a_bare_boolean_flag_of_a_group_and_of_a_class_means_true():
    flags = ["--model.cuda_graph", "--model.optim.unit_norm", "false", "--model.sae.k", "3"]
    settings, _ = with_config([*flags, "--trainer.deterministic"])
    run = parse_config(settings).run
    (member,) = run.members.values()
    assert member.cuda_graph and run.deterministic and not member.optim.unit_norm
    assert member.sparsity.k == 3


def test_bare_resume_continues_the_run_that_the_settings_name(tmp_path):
    (tmp_path / "mine").mkdir()
    config = tmp_path / "mine" / "config.yaml"
    config.write_text("{}")
    flags = ["--name=mine", "--runs", str(tmp_path), "--trainer.max_steps", "9"]
    settings, folder = with_config(flags, resume="")
    assert folder == tmp_path / "mine"
    assert settings == ["--config", str(config), "--trainer.max_steps", "9"]


def test_help_shows_no_python_classes_and_says_what_a_bare_resume_continues(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        if name != "fit":  # jsonargparse lists the classes of a setting itself
            assert "<class" not in text
        else:
            assert "--resume without a folder continues the run that --runs and --name" in text


def test_evaluate_of_a_sweep_names_its_finished_saes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    members = {"k=4": {"model.sae.k": 4}, "k=8": {"model.sae.k": 8}}
    folder = Path("grid")
    folder.mkdir()
    (folder / "config.yaml").write_text("name: grid\n")
    SweepSpec(["model.sae.k"], [members], stop_early=False).write(folder)
    assert main(["evaluate", "grid"]) == 2
    error = capsys.readouterr().err
    assert error.strip().endswith("none of its SAEs has finished; go on with `sweep --resume grid`")
    (folder / "wave-1/k=8/sae").mkdir(parents=True)
    assert main(["evaluate", "grid"]) == 2
    error = capsys.readouterr().err.strip()
    assert error == "error: grid is a sweep; give the folder of one of its SAEs: grid/wave-1/k=8"
