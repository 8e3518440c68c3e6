"""Compare SAELens folders with the inference formula of SAELens, written out."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.errors import UserError
from sae.formats import saelens


def edit(folder, **changes):
    """Change keys of the configuration."""
    file = folder / "cfg.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def saelens_inference(folder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes [batch, d_sae] and x_hat, as SAELens documents the `topk` architecture."""
    cfg = json.loads((folder / "cfg.json").read_text())
    t = load_file(folder / "sae_weights.safetensors")
    pre = (x - t["b_dec"] * cfg["apply_b_dec_to_input"]) @ t["W_enc"] + t["b_enc"]
    norms = t["W_dec"].norm(dim=-1) if cfg["rescale_acts_by_decoder_norm"] else 1
    top = (pre * norms).topk(cfg["k"])
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    return acts, (acts / norms) @ t["W_dec"] + t["b_dec"]


def test_saelens_computes_the_same_from_a_written_folder(trained, x, tmp_path):
    saelens.write(trained, tmp_path / "sae")
    acts, x_hat = saelens_inference(tmp_path / "sae", x)
    torch.testing.assert_close(acts, trained.encode(x).to_dense())
    torch.testing.assert_close(x_hat, trained(x))
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert cfg["architecture"] == "topk" and (cfg["d_in"], cfg["d_sae"], cfg["k"]) == (12, 40, 5)
    assert cfg["metadata"]["model_name"] == "gpt2"
    assert cfg["metadata"]["hook_name"] == "layers.3"


@pytest.mark.parametrize("subtract", [True, False], ids=["b_dec", "no_b_dec"])
@pytest.mark.parametrize("rescale", [True, False], ids=["rescale", "plain"])
def test_inference_settings_are_folded_into_the_tensors(rescale, subtract, trained, x, tmp_path):
    saelens.write(trained, tmp_path / "sae")
    edit(
        tmp_path / "sae",
        apply_b_dec_to_input=subtract,
        rescale_acts_by_decoder_norm=rescale,
    )
    acts, x_hat = saelens_inference(tmp_path / "sae", x)
    sae = saelens.read(tmp_path / "sae")
    torch.testing.assert_close(sae.encode(x).to_dense(), acts, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae(x), x_hat, atol=1e-4, rtol=1e-4)


def test_metadata_of_saelens_is_kept(trained, tmp_path):
    saelens.write(trained, tmp_path / "sae")
    theirs = {"sae_lens_version": "6.54.12", "model_name": "m", "hook_name": "blocks.3", "l0": 5.0}
    edit(tmp_path / "sae", metadata=theirs)
    sae = saelens.read(tmp_path / "sae")
    assert sae.metadata == {"model": "m", "hook": "blocks.3", "saelens": theirs}
    assert sae.site.hooks == ("blocks.3",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "jumprelu"}, "architecture='jumprelu'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations='hook_z'"),
        ({"metadata": {"sae_lens_version": "5.9.1"}}, "sae_lens_version='5.9.1'"),
        ({"metadata": {}}, "sae_lens_version=None"),
        ({"metadata": None}, "sae_lens_version=None"),
    ],
    ids=["architecture", "normalised", "hook_z", "old", "no-version", "no-metadata"],
)
def test_unsupported_settings_are_refused_by_name(changes, message, trained, tmp_path):
    saelens.write(trained, tmp_path / "sae")
    edit(tmp_path / "sae", **changes)
    with pytest.raises(UserError, match=message):
        saelens.read(tmp_path / "sae")


def test_rescaling_refuses_a_decoder_row_of_zeros(trained, tmp_path):
    saelens.write(trained, tmp_path / "sae")
    edit(tmp_path / "sae", rescale_acts_by_decoder_norm=True)
    file = tmp_path / "sae" / "sae_weights.safetensors"
    tensors = load_file(file)
    tensors["W_dec"][7] = 0
    save_file(tensors, file)
    with pytest.raises(UserError, match="W_dec row 7"):
        saelens.read(tmp_path / "sae")
