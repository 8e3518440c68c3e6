"""Test the SAE class: initial weights, folding of scales, saving and loading."""

from __future__ import annotations

import json

import pytest
import torch

from sae import SAE, UserError
from sae.autoencoder.init import geometric_median
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import Sparsity, TopK


@pytest.fixture
def sae() -> SAE:
    sae = SAE(12, TopK(d_sae=40, k=5), site=Autoencoder(hook="layers.1"), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    sae.metadata = {"model": "m", "layers": [1, 2]}
    return sae


def test_initial_weights_are_tied_unit_norm_and_seeded():
    sae = SAE(12, TopK(d_sae=40, k=5), seed=3)
    assert torch.equal(sae.W_enc, sae.W_dec.t())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert not sae.b_enc.any() and not sae.b_dec.any()
    assert torch.equal(sae.W_dec, SAE(12, TopK(d_sae=40, k=5), seed=3).W_dec)
    assert not torch.equal(sae.W_dec, SAE(12, TopK(d_sae=40, k=5), seed=4).W_dec)
    assert sae.W_enc.t().is_contiguous(), "the kernels read W_enc latent by latent"


def test_encode_returns_the_relu_of_the_k_largest(sae):
    x = torch.randn(7, 12)
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    largest = pre_acts.topk(5, dim=1)
    expected = torch.zeros(7, 40).scatter(1, largest.indices, largest.values.relu())
    codes = sae.encode(x)
    torch.testing.assert_close(codes.to_dense(), expected)
    torch.testing.assert_close(sae.decode(codes), expected @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(sae(x), sae.decode(codes))


def test_wrong_width_error_names_both_widths(sae):
    with pytest.raises(UserError, match=r"x has shape \(7, 13\).*d_in=12 at layers\.1"):
        sae.encode(torch.randn(7, 13))


@pytest.mark.parametrize("scale", [0.013, 1.0, 77.0])
def test_folding_moves_the_scale_into_the_biases(sae, scale):
    x = torch.randn(64, 12)
    folded = sae.fold_scale(scale)
    inside, outside = sae.encode(x * scale), folded.encode(x)
    assert torch.equal(inside.to_dense() > 0, outside.to_dense() > 0)
    torch.testing.assert_close(folded(x), sae(x * scale) / scale, rtol=1e-4, atol=1e-5)
    assert torch.equal(folded.W_dec, sae.W_dec)
    assert folded.metadata["activation_scale"] == scale
    assert sae.b_dec.data_ptr() != folded.b_dec.data_ptr()


def test_save_and_load_give_the_same_bits(sae, tmp_path):
    sae.save(tmp_path / "sae")
    loaded = SAE.load(tmp_path / "sae")
    x = torch.randn(9, 12)
    assert torch.equal(loaded(x), sae(x))
    assert (loaded.sparsity, loaded.site, loaded.metadata) == (
        sae.sparsity,
        sae.site,
        sae.metadata,
    )
    assert loaded.W_enc.t().is_contiguous()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"], "no partial files may remain"


def test_save_replaces_an_older_sae(sae, tmp_path):
    sae.save(tmp_path / "sae")
    other = SAE(12, TopK(d_sae=8, k=2))
    other.save(tmp_path / "sae")
    assert SAE.load(tmp_path / "sae").d_sae == 8


def test_failed_save_leaves_the_older_sae(sae, tmp_path, monkeypatch):
    sae.save(tmp_path / "sae")
    other = SAE(12, TopK(d_sae=8, k=2), metadata={"not json": object()})
    with pytest.raises(UserError, match="an SAE cannot be saved: it has an object of type object"):
        other.save(tmp_path / "sae")
    assert SAE.load(tmp_path / "sae").d_sae == 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]


def test_saving_over_other_files_is_refused(sae, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="already holds thesis.tex"):
        sae.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def _truncate(folder):
    file = folder / "sae.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _edit(**changes):
    def edit(folder):
        file = folder / "sae.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "sae.safetensors does not match its checksum"),
        (lambda f: (f / "sae.json").unlink(), "sae.json does not exist"),
        (lambda f: (f / "sae.safetensors").unlink(), "sae.safetensors does not exist"),
        (lambda f: (f / "sae.json").write_text("{"), "not a description of an SAE"),
        (_edit(d_in=13), "size mismatch.*W_enc"),
        (_edit(format=99), "format 99"),
        (_edit(sparsity={"class": "TopKK", "d_sae": 40, "k": 5}), "did you mean TopK"),
        (_edit(sparsity={"class": "TopK", "d_sae": 40, "kk": 5}), "cannot be rebuilt.*kk"),
    ],
    ids=["truncated", "no-json", "no-weights", "bad-json", "shape", "format", "class", "field"],
)
def test_damaged_files_are_one_line_errors(sae, tmp_path, damage, message):
    sae.save(tmp_path / "sae")
    damage(tmp_path / "sae")
    with pytest.raises(UserError, match=message) as caught:
        SAE.load(tmp_path / "sae")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("d_sae", "k", "message"),
    [
        (8, 9, "^k=9 exceeds d_sae=8"),
        (8, 0, "^k=0"),
        (0, 1, "^d_sae=0"),
    ],
)
def test_impossible_sizes_are_refused(d_sae, k, message):
    with pytest.raises(UserError, match=message):
        TopK(d_sae=d_sae, k=k)


def test_a_rule_from_outside_the_package_is_saved_and_loaded(tmp_path):
    class EverySecond(TopK):
        def encode(self, x, sae, *, backend="auto"):
            codes = super().encode(x, sae, backend=backend)
            codes.values = codes.values * (codes.indices % 2 == 0)
            return codes

    try:
        sae = SAE(6, EverySecond(d_sae=10, k=3))
        sae.save(tmp_path / "sae")
        loaded = SAE.load(tmp_path / "sae")
        assert type(loaded.sparsity) is EverySecond
        assert not loaded.encode(torch.randn(20, 6)).to_dense()[:, 1::2].any()
    finally:
        del Sparsity.registry["EverySecond"]


def test_site_binds_to_the_harvested_hooks():
    assert Autoencoder().bind({"layers.3": 8}).hooks == ("layers.3",)
    with pytest.raises(UserError, match="hook is not set.*a, b"):
        Autoencoder().bind({"a": 8, "b": 8})
    with pytest.raises(UserError, match="site names the hook c, which is not harvested.*a, b"):
        Autoencoder(hook="c").bind({"a": 8, "b": 8})


def test_geometric_median_is_not_the_mean():
    # It minimises the sum of distances, so a far point has no more influence than a near one.
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1000.0, 0.0]])
    median = geometric_median(x)
    distances = lambda p: (x.double() - p).norm(dim=1).sum()
    assert distances(median) < distances(x.double().mean(0)) - 500
    for direction in torch.eye(2, dtype=torch.float64):
        for step in (-1e-3, 1e-3):
            assert distances(median) <= distances(median + step * direction) + 1e-9
