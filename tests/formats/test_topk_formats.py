"""The formats of TopK SAEs: atomic writing, and refusing damaged files and other rules."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae import SAE
from sae.autoencoder.sparsity import TopK
from sae.errors import UserError
from sae.formats import saelens, sparsify

TOPK_FORMATS = pytest.mark.parametrize("format", [saelens, sparsify], ids=["saelens", "sparsify"])
ENCODER = {saelens: "W_enc", sparsify: "encoder.weight"}


def edit(format, folder, **changes):
    """Change keys of the configuration; the value None removes a key."""
    file = folder / format.CONFIG
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(format, folder, change):
    """Apply `change` to the dictionary of tensors in a written folder."""
    tensors = load_file(folder / format.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / format.WEIGHTS)


@TOPK_FORMATS
def test_failed_write_leaves_the_folder_as_it_was(format, trained, tmp_path, monkeypatch):
    folder = tmp_path / "sae"
    format.write(trained, folder)

    def full_disk(tensors, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("sae.formats.folder.save_file", full_disk)
    before = trained.b_dec.clone()
    with torch.no_grad():
        trained.b_dec += 1
    with pytest.raises(OSError, match="space"):
        format.write(trained, folder)
    assert torch.equal(format.read(folder).b_dec, before)
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]


@TOPK_FORMATS
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, w: t.pop("b_dec"), "no tensor b_dec"),
        (lambda t, w: t.update(threshold=torch.zeros(40)), "tensor threshold"),
        (lambda t, w: t.update(b_dec=torch.zeros(13)), r"b_dec has shape \[13\].*\[12\]"),
        (lambda t, w: t.update({w: t[w].t().contiguous()}), "shape"),
        (lambda t, w: t["W_dec"][3].fill_(torch.nan), "W_dec holds NaN"),
        (lambda t, w: t[w][0].fill_(torch.inf), "infinite"),
        (lambda t, w: t.update(b_dec=torch.zeros(12, dtype=torch.int64)), "b_dec is torch.int64"),
    ],
    ids=["missing", "unexpected", "shape", "transposed", "nan", "inf", "integer"],
)
def test_damaged_tensors_are_refused(format, damage, message, trained, tmp_path):
    format.write(trained, tmp_path / "sae")
    edit_tensors(format, tmp_path / "sae", lambda tensors: damage(tensors, ENCODER[format]))
    with pytest.raises(UserError, match=message) as caught:
        format.read(tmp_path / "sae")
    assert format.WEIGHTS in str(caught.value)


@TOPK_FORMATS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": "12"}, "d_in='12'"),
        ({"k": 0}, "k=0"),
        ({"k": True}, "k=True"),
        ({"k": 41}, r"cfg\.json has k=41"),
        ({"d_in": None}, "d_in=None"),
        ({"d_in": 13}, "shape"),
    ],
    ids=["text", "zero", "bool", "k-too-large", "missing", "other"],
)
def test_damaged_configuration_is_refused(format, changes, message, trained, tmp_path):
    format.write(trained, tmp_path / "sae")
    edit(format, tmp_path / "sae", **changes)
    with pytest.raises(UserError, match=message):
        format.read(tmp_path / "sae")


@TOPK_FORMATS
def test_missing_and_truncated_files_are_refused(format, trained, tmp_path):
    folder = tmp_path / "sae"
    with pytest.raises(UserError, match=r"cfg\.json does not exist"):
        format.read(folder)
    format.write(trained, folder)
    weights = folder / format.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        format.read(folder)
    weights.unlink()
    with pytest.raises(UserError, match="does not exist"):
        format.read(folder)
    for text in ("{", "[1]"):
        (folder / "cfg.json").write_text(text)
        with pytest.raises(UserError, match=r"cfg\.json"):
            format.read(folder)


@TOPK_FORMATS
def test_a_subclass_of_topk_is_not_written(format, tmp_path):
    class OtherRule(TopK):
        """A rule that may encode differently."""

    with pytest.raises(UserError, match="OtherRule"):
        format.write(SAE(4, OtherRule(d_sae=8, k=2)), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()
