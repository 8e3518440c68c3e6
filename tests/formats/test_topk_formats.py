"""Requirements of both TopK formats: round trips, atomic writing, refusing damaged files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae import SAE
from sae.autoencoder.sparsity import TopK
from sae.errors import UserError
from sae.formats import saelens, sparsify

FORMATS = pytest.mark.parametrize("format", [saelens, sparsify], ids=["saelens", "sparsify"])
ENCODER = {saelens: "W_enc", sparsify: "encoder.weight"}


def edit(format, folder, **changes):
    """Change keys of the configuration; None removes one."""
    file = folder / format.CONFIG
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(format, folder, change):
    tensors = load_file(folder / format.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / format.WEIGHTS)


@FORMATS
def test_round_trip(format, trained, x, tmp_path):
    format.write(trained, tmp_path / "deep" / "layers.3")
    back = format.read(tmp_path / "deep" / "layers.3")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.sparsity == trained.sparsity and back.site == trained.site
    assert back.metadata == trained.metadata
    assert back.W_enc.t().is_contiguous()
    assert torch.equal(back.encode(x).to_dense(), trained.encode(x).to_dense())
    assert torch.equal(back(x), trained(x))


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_read_exactly(format, dtype, trained, tmp_path):
    format.write(trained.to(dtype), tmp_path / "sae")
    back = format.read(tmp_path / "sae")
    assert back.W_dec.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(back.W_enc, trained.W_enc.to(back.W_enc.dtype))


@FORMATS
def test_folder_is_replaced_whole_or_left_alone(format, trained, tmp_path, monkeypatch):
    folder = tmp_path / "sae"
    format.write(trained, folder)
    with torch.no_grad():
        trained.b_dec += 1
    format.write(trained, folder)
    assert torch.equal(format.read(folder).b_dec, trained.b_dec)
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]

    def full_disk(tensors, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("sae.formats._folder.save_file", full_disk)
    before = trained.b_dec.clone()
    with torch.no_grad():
        trained.b_dec += 1
    with pytest.raises(OSError, match="space"):
        format.write(trained, folder)
    assert torch.equal(format.read(folder).b_dec, before)
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]


@FORMATS
def test_folder_with_other_files_is_not_touched(format, trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        format.write(trained, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@FORMATS
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
def test_damaged_tensors(format, damage, message, trained, tmp_path):
    format.write(trained, tmp_path / "sae")
    edit_tensors(format, tmp_path / "sae", lambda tensors: damage(tensors, ENCODER[format]))
    with pytest.raises(UserError, match=message) as caught:
        format.read(tmp_path / "sae")
    assert format.WEIGHTS in str(caught.value)


@FORMATS
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
def test_damaged_configuration(format, changes, message, trained, tmp_path):
    format.write(trained, tmp_path / "sae")
    edit(format, tmp_path / "sae", **changes)
    with pytest.raises(UserError, match=message):
        format.read(tmp_path / "sae")


@FORMATS
def test_files_that_are_not_there_or_not_what_they_say(format, trained, tmp_path):
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


@FORMATS
def test_only_topk_is_written(format, tmp_path):
    class Everything(TopK):
        pass

    with pytest.raises(UserError, match="Everything"):
        format.write(SAE(4, Everything(d_sae=8, k=2)), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()
