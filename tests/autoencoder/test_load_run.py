"""Test SAE.load on the folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae import SAE, UserError
from sae.autoencoder.sparsity import TopK


def save(folder: Path, seed: int = 0) -> SAE:
    sae = SAE(4, TopK(d_sae=6, k=2), seed=seed)
    sae.save(folder)
    return sae


def test_run_folder_and_its_sae_folder_load_the_same_sae(tmp_path: Path) -> None:
    sae = save(tmp_path / "run" / "sae")
    for folder in (tmp_path / "run", tmp_path / "run" / "sae", str(tmp_path / "run")):
        assert torch.equal(SAE.load(folder).W_dec, sae.W_dec)


def test_run_that_trained_several_lists_them(tmp_path: Path) -> None:
    for seed, name in enumerate(("wide", "narrow")):
        save(tmp_path / "run" / name / "sae", seed)
    with pytest.raises(UserError, match=r"several SAEs: narrow, wide; give .*run/narrow$"):
        SAE.load(tmp_path / "run")
    assert torch.equal(
        SAE.load(tmp_path / "run" / "narrow").W_dec, SAE(4, TopK(d_sae=6, k=2), seed=1).W_dec
    )


def test_unfinished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: run\n")
    with pytest.raises(UserError, match="is a run without a finished SAE; resume it with"):
        SAE.load(tmp_path)


def test_empty_and_missing_folders_say_what_to_give(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"sae\.json does not exist; give a folder that SAE"):
            SAE.load(folder)


def test_half_an_sae_folder_names_the_missing_file(tmp_path: Path) -> None:
    save(tmp_path / "run" / "sae")
    (tmp_path / "run" / "sae" / "sae.safetensors").unlink()
    with pytest.raises(UserError, match=r"run/sae/sae\.safetensors does not exist"):
        SAE.load(tmp_path / "run")
