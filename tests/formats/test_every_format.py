"""Facts that hold for every format in FORMATS: round trips, and folders that are written to."""

from __future__ import annotations

import pytest
import torch

from sae.errors import UserError
from sae.formats import FORMATS

EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS.values(), ids=list(FORMATS))


@EVERY_FORMAT
def test_round_trip_keeps_the_sae(format, trained, x, tmp_path):
    format.write(trained, tmp_path / "deep" / "layers.3")
    loaded = format.read(tmp_path / "deep" / "layers.3")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.sparsity == trained.sparsity and loaded.site == trained.site
    assert loaded.metadata == trained.metadata
    assert loaded.W_enc.t().is_contiguous()
    assert torch.equal(loaded.encode(x).to_dense(), trained.encode(x).to_dense())
    assert torch.equal(loaded(x), trained(x))


@EVERY_FORMAT
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_read_exactly(format, dtype, trained, tmp_path):
    format.write(trained.to(dtype), tmp_path / "sae")
    loaded = format.read(tmp_path / "sae")
    assert loaded.W_dec.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(loaded.W_enc, trained.W_enc.to(loaded.W_enc.dtype))


@EVERY_FORMAT
def test_writing_again_replaces_the_folder(format, trained, tmp_path):
    format.write(trained, tmp_path / "sae")
    with torch.no_grad():
        trained.b_dec += 1
    format.write(trained, tmp_path / "sae")
    assert torch.equal(format.read(tmp_path / "sae").b_dec, trained.b_dec)
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]


@EVERY_FORMAT
def test_folder_with_other_files_is_refused_and_not_touched(format, trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        format.write(trained, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
