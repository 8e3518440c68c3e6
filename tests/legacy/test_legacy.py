"""SAE folders, configs and checkpoints written before names were changed still load.

`fixtures/` was written by the code before the rename: `saes/` holds SAE folders with the codes and
predictions of some rows, `trained/` runs of 8 steps with their checkpoint at step 4 and, in
`final/`, the SAEs of the run that was not interrupted.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sae import SAE, legacy
from sae.cli.main import main

FIXTURES = Path(__file__).parent / "fixtures"
SAES = sorted(path.name for path in (FIXTURES / "saes").iterdir() if path.is_dir())
RUNS = sorted(path.name for path in (FIXTURES / "trained").iterdir())


@pytest.mark.parametrize("name", SAES)
def test_old_sae_folder_encodes_and_decodes_as_before(name: str) -> None:
    folder = FIXTURES / "saes" / name
    sae, before = SAE.load(folder), load_file(f"{folder}.values.safetensors")
    codes = sae.encode(before["x"])
    torch.testing.assert_close(codes.to_dense(), before["codes"])
    torch.testing.assert_close(sae.decode(codes, before["x"]), before["y_hat"])
    assert (sae.stability is not None) == (name == "TopK-Autoencode")


@pytest.mark.parametrize("name", SAES)
def test_old_sae_folder_saves_and_loads_again(tmp_path: Path, name: str) -> None:
    sae = SAE.load(FIXTURES / "saes" / name)
    sae.save(tmp_path / "again")
    again = SAE.load(tmp_path / "again")
    assert (again.sparsity, again.site) == (sae.sparsity, sae.site)
    for key, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", RUNS)
def test_old_run_resumes_and_ends_as_before(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    shutil.copytree(FIXTURES / "trained" / name, run, ignore=shutil.ignore_patterns("final"))
    assert main(["fit", "--resume", str(run), "--runs", str(tmp_path)]) == 0
    final = FIXTURES / "trained" / name / "final"
    for weights in final.rglob("sae.safetensors"):
        folder = weights.parent.relative_to(final)
        before, now = load_file(weights), load_file(run / folder / "sae.safetensors")
        assert now.keys() == before.keys()
        for key, tensor in before.items():
            # The bits are the same on the machine that wrote the fixture. Another processor sums
            # in another order, which 4 steps of training enlarge.
            torch.testing.assert_close(now[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_old_metrics_are_continued(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    shutil.copytree(FIXTURES / "trained" / name, run, ignore=shutil.ignore_patterns("final"))
    before = {p.relative_to(run): p.read_text().splitlines() for p in run.rglob("metrics.csv")}
    assert main(["fit", "--resume", str(run), "--runs", str(tmp_path)]) == 0
    assert before
    for file, old in before.items():
        now = (run / file).read_text().splitlines()
        assert len(now) == len(old), file
        steps = [[row.split(",")[0] for row in rows] for rows in (old, now)]
        assert steps[0] == steps[1], file


def test_hand_written_config_with_old_names_trains(tmp_path: Path) -> None:
    args = ["--config", str(FIXTURES / "short.yaml"), "--runs", str(tmp_path), "--name", "r"]
    assert main(["fit", *args, "--trainer.max_steps", "4"]) == 0
    settings = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert "objective" not in settings["model"]
    assert [term["class_path"].rpartition(".")[2] for term in settings["model"]["losses"]] == [
        "FVU",
        "L0",
    ]


def test_config_with_full_old_class_paths_gets_new_ones() -> None:
    old = {
        "model": {
            "site": {"class_path": "sae.autoencoder.sites.crosscode.CrossLayer"},
            "sae": {"class_path": "sae.autoencoder.sparsity.TopK", "init_args": {"k": 3}},
            "objective": [
                {"class_path": "sae.autoencoder.objective.fvu.FVU"},
                {"class_path": "sae.autoencoder.objective.L1", "init_args": {"coefficient": 2}},
                {"class_path": "mine.Transcode"},
                {"class_path": "PreActs", "init_args": {"most": 5}},
                "FVU",
            ],
        },
        "members": {"wide": {"model.site": "Crosscode", "model.objective": ["FVU"]}},
        "name": "Crosscode",
    }
    assert legacy.config(old) == {
        "model": {
            "site": {"class_path": "sae.autoencoder.sites.crosscoder.CrossLayerTranscoder"},
            "sae": {"class_path": "sae.autoencoder.sparsity.TopK", "init_args": {"k": 3}},
            "losses": [
                {"class_path": "sae.autoencoder.losses.fvu.FVU"},
                {"class_path": "sae.autoencoder.losses.L1", "init_args": {"coefficient": 2}},
                {"class_path": "mine.Transcode"},
                {"class_path": "PreActs", "init_args": {"max_latents": 5}},
                "FVU",
            ],
        },
        "members": {"wide": {"model.site": "Crosscoder", "model.losses": ["FVU"]}},
        "name": "Crosscode",
    }


def test_config_text_with_new_names_is_unchanged() -> None:
    text = "# a comment\nmodel:\n  losses: [FVU]\n"
    assert legacy.config_text(text) is text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--model.objective=[FVU]", "--model.losses=[FVU]"),
        ("--model.objective", "--model.losses"),
        ("--model.objectives=1", "--model.objectives=1"),
        ("model.objective", "model.objective"),
    ],
)
def test_old_keys_on_the_command_line(old: str, new: str) -> None:
    assert legacy.flag(old) == new


def test_checkpoint_keys_are_renamed_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "CHECKPOINT_KEYS", {"learner.meter": "learner.means", "a": "b"})
    old = {"members.0.learner.meter.sums": 1, "learner.meters": [{"a": 2, "aa": 3}], 4: {"x.a": 5}}
    assert legacy.checkpoint(old) == {
        "members.0.learner.means.sums": 1,
        "learner.meters": [{"b": 2, "aa": 3}],
        4: {"x.b": 5},
    }


def test_no_old_name_is_defined_any_more() -> None:
    source = Path(legacy.__file__).parent
    old = re.compile(rf"^class ({'|'.join(legacy.CLASSES)})\b", re.MULTILINE)
    assert not [file for file in source.rglob("*.py") if old.search(file.read_text())]
