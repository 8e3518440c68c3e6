"""Input that cannot work: `fit` prints one line, exits with code 2, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae.cli.main import main


@pytest.fixture
def config(tmp_path, write_config, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_config(tmp_path)


def fails(capsys, *args: str) -> str:
    """Run `fit`, check that it fails with one line and code 2, and return the line."""
    capsys.readouterr()
    assert main(["fit", *map(str, args)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


CASES = {
    "no-text": (["--data.source.text.paths", "[nothere*.txt]"], "nothere*.txt"),
    "empty-text": (["--data.source.text.paths", "[empty.txt]"], "empty.txt"),
    "no-model": (["--data.source.model", "./nowhere"], "./nowhere"),
    "no-package": (["--data.source.model", "pypi:not-a-package"], "pip install not-a-package"),
    "no-hook": (["--data.source.hooks", "[layers.9]"], "layers.2"),
    "no-usable-token": (["--data.source.text.paths", "[special.txt]"], "no usable token"),
    "context-too-long": (["--data.source.context_size", "4096"], "context_size=4096"),
    "no-steps-per-call": (["--trainer.steps_per_call", "0"], "trainer.steps_per_call=0"),
    "log-between-calls": (
        ["--trainer.steps_per_call", "3", "--checkpoint_every", "12"],
        "trainer.log_every_n_steps=4",
    ),
    "cuda-graph-without-gpu": (["--model.cuda_graph", "true"], "model.cuda_graph=true"),
    "site-of-another-hook": (["--model.site", "Autoencoder", "--model.site.hook", "x"], "layers.1"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_refused(case, config, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "special.txt").write_text("<|endoftext|>".join(["[SEP] [CLS]"] * 50))
    args, named = CASES[case]
    assert named in fails(capsys, "--config", config, *args)


def test_nan_activations_stop_the_run(config, tmp_path, capsys, tiny_folders):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(tiny_folders["bert"])
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    transformers.AutoTokenizer.from_pretrained(tiny_folders["bert"]).save_pretrained(
        tmp_path / "broken"
    )
    error = fails(capsys, "--config", config, "--data.source.model", str(tmp_path / "broken"))
    assert "256 of 256 activations" in error and "NaN" in error


@pytest.fixture
def stopped(config, tmp_path) -> Path:
    """Return a run with checkpoints at steps 13 and 20 and no summary, as after a crash."""
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "20"]) == 0
    (tmp_path / "runs/tiny/summary.json").unlink()
    return tmp_path / "runs/tiny"


def test_resume_refuses_other_settings_and_a_damaged_checkpoint(stopped, config, capsys):
    error = fails(capsys, "--config", config)
    assert "runs/tiny holds an unfinished run at step 20" in error and "--resume runs/tiny" in error

    twos = ["--trainer.steps_per_call", "2", "--checkpoint_every", "14"]
    assert "steps_per_call=2 differs from 1" in fails(capsys, "--resume", "runs/tiny", *twos)
    error = fails(capsys, "--resume", "runs/tiny", "--model.sae.d_sae", "128")
    assert "W_enc" in error and "[16, 256]" in error and "[16, 128]" in error

    newest = stopped / "checkpoints/step=20.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    error = fails(capsys, "--resume", "runs/tiny")
    assert "step=20.ckpt" in error and "truncated" in error and "remove it" in error

    newest.unlink()  # as the message says
    assert main(["fit", "--resume", "runs/tiny"]) == 0
    assert (stopped / "summary.json").exists()


def test_a_checkpoint_is_never_unpickled(stopped, capsys, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"state_dict": Evil()}, stopped / "checkpoints/step=20.ckpt")
    fails(capsys, "--resume", "runs/tiny")
    assert not (tmp_path / "owned").exists()


def test_resume_needs_a_checkpoint(stopped, capsys):
    for file in (stopped / "checkpoints").iterdir():
        file.unlink()
    assert "before its first checkpoint" in fails(capsys, "--resume", "runs/tiny")


def test_resume_refuses_config(config, capsys):
    assert "leave out --config" in fails(capsys, "--resume", "runs/tiny", "--config", config)
