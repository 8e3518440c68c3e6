"""Test the stability of latents across seeds in the files of an SAE."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sae import SAE, UserError
from sae.autoencoder import io
from sae.autoencoder.sparsity import TopK


@pytest.fixture
def sae() -> SAE:
    sae = SAE(4, TopK(d_sae=6, k=2))
    sae.stability = torch.arange(6, dtype=torch.float64) / 6
    return sae


def test_stability_is_saved_and_is_not_a_parameter(sae, tmp_path):
    sae.save(tmp_path / "a")
    again = SAE.load(tmp_path / "a")
    assert torch.equal(again.stability, (torch.arange(6, dtype=torch.float64) / 6).float())
    assert "stability" not in again.state_dict()
    assert torch.equal(again.fold_scale(3.0).stability, again.stability)
    again.save(tmp_path / "b")
    assert torch.equal(SAE.load(tmp_path / "b").stability, again.stability)


def test_an_sae_without_stability_saves_none(tmp_path):
    SAE(4, TopK(d_sae=6, k=2)).save(tmp_path / "a")
    assert "stability" not in load_file(tmp_path / "a" / "sae.safetensors")
    assert SAE.load(tmp_path / "a").stability is None


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("stability", (5,), r"of shape \(5,\)"),
        ("stable", (6,), 'Unexpected.*"stable"'),
    ],
)
def test_wrong_shape_and_unknown_tensors_are_refused(sae, tmp_path, name, shape, words):
    sae.save(tmp_path / "a")
    config, tensors = io.read(tmp_path / "a")
    del tensors["stability"], config["format"], config["sha256"]
    io.write(tmp_path / "a", config, {**tensors, name: torch.zeros(shape)})
    with pytest.raises(UserError, match=words):
        SAE.load(tmp_path / "a")
