"""Compare sparsify folders with the inference formula of sparsify, written out."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear

from sae.errors import UserError
from sae.formats import sparsify


def edit(folder, **changes):
    """Change keys of the configuration; the value None removes a key."""
    file = folder / "cfg.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_sparsify_computes_the_same_from_a_written_folder(trained, x, tmp_path):
    sparsify.write(trained, tmp_path / "layers.3")
    cfg = json.loads((tmp_path / "layers.3" / "cfg.json").read_text())
    t = load_file(tmp_path / "layers.3" / "sae.safetensors")
    pre = linear(x - t["b_dec"], t["encoder.weight"], t["encoder.bias"]).relu()
    top = pre.topk(cfg["k"])
    x_hat = torch.einsum("bk,bkd->bd", top.values, t["W_dec"][top.indices]) + t["b_dec"]
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    torch.testing.assert_close(acts, trained.encode(x).to_dense())
    torch.testing.assert_close(x_hat, trained(x))
    assert cfg["num_latents"] == 40 and cfg["activation"] == "topk" and not cfg["transcode"]


def test_num_latents_0_means_d_in_times_expansion_factor(trained, x, tmp_path):
    sparsify.write(trained, tmp_path / "sae")
    edit(tmp_path / "sae", num_latents=0, expansion_factor=3)
    with pytest.raises(UserError, match=r"the configuration says \[36, 12\]"):
        sparsify.read(tmp_path / "sae")
    edit(tmp_path / "sae", d_in=10, expansion_factor=4)
    with pytest.raises(UserError, match=r"the configuration says \[40, 10\]"):
        sparsify.read(tmp_path / "sae")


@pytest.mark.parametrize("num_latents", [0, None], ids=["zero", "left_out"])
def test_expansion_factor_defaults_to_32(num_latents, tmp_path):
    from sae import SAE
    from sae.autoencoder.sparsity import TopK

    sparsify.write(SAE(4, TopK(d_sae=128, k=2)), tmp_path / "sae")
    # The factor of 32 is left out too, because it is the default of sparsify.
    edit(tmp_path / "sae", num_latents=num_latents, expansion_factor=None)
    assert sparsify.read(tmp_path / "sae").d_sae == 128


@pytest.mark.parametrize("path", ["run/layers.3", "run/layers.3/seed2"])
def test_hook_is_read_from_the_name_of_the_folder(path, trained, tmp_path):
    sparsify.write(trained, tmp_path / path)
    edit(tmp_path / path, sae_workbench=None)
    sae = sparsify.read(tmp_path / path)
    assert sae.site.hooks == ("layers.3",) and sae.metadata == {"hook": "layers.3"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": True}, "transcode=True"),
        ({"skip_connection": True}, "skip_connection=True"),
        ({"activation": "groupmax"}, "activation='groupmax'"),
        ({"signed": True}, "signed=True"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_unsupported_settings_are_refused_by_name(changes, message, trained, tmp_path):
    sparsify.write(trained, tmp_path / "sae")
    edit(tmp_path / "sae", **changes)
    with pytest.raises(UserError, match=message):
        sparsify.read(tmp_path / "sae")
