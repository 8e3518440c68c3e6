"""Activations and codes of any shape: leading dimensions, dense codes, gradients, wrong widths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import SAE, UserError
from sae.autoencoder.sites import Autoencoder, CrossLayerTranscoder, SkipTranscoder
from sae.autoencoder.sparsity import JumpReLU, Sparsity, TopK
from sae_kernels.codes import Codes

D_IN, D_SAE = 7, 22
SHAPES = [(D_IN,), (5, D_IN), (2, 3, D_IN), (2, 1, 3, D_IN), (0, D_IN), (2, 0, D_IN)]
RULES = {"fixed k": TopK(d_sae=D_SAE, k=3), "ragged": JumpReLU(d_sae=D_SAE)}
CROSS_LAYER = CrossLayerTranscoder(read=("a", "c"), predict=("b", "d"))

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def make_sae(rule: Sparsity, **settings) -> SAE:
    sae = SAE(D_IN, rule, seed=1, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return sae


def random(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@each_rule
@each_shape
def test_any_leading_dimensions_give_the_codes_of_the_rows(rule: Sparsity, shape) -> None:
    sae, x = make_sae(rule), random(shape)
    codes, rows = sae.encode(x), sae.encode(x.reshape(-1, D_IN))
    assert codes.batch == rows.batch == x[..., 0].numel()
    assert torch.equal(codes.to_dense(), rows.to_dense().view(*shape[:-1], D_SAE))
    assert torch.equal(codes.l0(), rows.l0().view(shape[:-1]))
    assert torch.equal(sae.decode(codes), sae.decode(rows).view(shape))
    assert torch.equal(sae(x), sae.decode(codes))


@each_rule
@each_shape
def test_dense_codes_decode_as_sparse_codes_do(rule: Sparsity, shape) -> None:
    sae, x = make_sae(rule), random(shape)
    codes = sae.encode(x)
    y_hat = sae.decode(codes.to_dense())
    assert y_hat.shape == shape
    torch.testing.assert_close(y_hat, sae.decode(codes))


@each_rule
def test_detached_codes_keep_their_shape(rule: Sparsity) -> None:
    codes = make_sae(rule).encode(random((2, 3, D_IN)))
    assert codes.detach().to_dense().shape == (2, 3, D_SAE)
    assert codes.rows(slice(1, 3)).to_dense().shape == (2, D_SAE), "a slice of rows is 2-D"


def test_gradients_in_three_dimensions_are_those_of_the_rows() -> None:
    gradients = []
    for shape in ((2, 3, D_IN), (6, D_IN)):
        sae, x = make_sae(TopK(d_sae=D_SAE, k=3)), random((6, D_IN)).view(shape).requires_grad_()
        cotangent = random((6, D_IN)).flip(0).view(shape)
        (sae(x) * cotangent).sum().backward()
        assert x.grad is not None
        gradients.append([x.grad.view(-1, D_IN), *(p.grad for p in sae.parameters())])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
        assert first.any()


def test_dense_decode_is_differentiable_in_the_codes() -> None:
    sae = make_sae(TopK(d_sae=D_SAE, k=3))
    dense = random((2, 3, D_SAE)).requires_grad_()
    cotangent = random((2, 3, D_IN))
    (sae.decode(dense) * cotangent).sum().backward()
    torch.testing.assert_close(dense.grad, cotangent @ sae.W_dec.detach().t())


def test_strided_and_half_precision_activations() -> None:
    sae, x = make_sae(TopK(d_sae=D_SAE, k=3)), random((3, 2, D_IN))
    strided = x.transpose(0, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(sae(strided), sae(strided.contiguous()))
    assert sae(x.bfloat16()).dtype == torch.float32


def test_refined_codes_keep_the_shape() -> None:
    sae, x = make_sae(TopK(d_sae=D_SAE, k=3)), random((2, 3, D_IN))
    codes, rows = sae.encode(x, refine=2), sae.encode(x.view(-1, D_IN), refine=2)
    assert torch.equal(codes.to_dense(), rows.to_dense().view(2, 3, D_SAE))


def test_skip_transcoder_in_three_dimensions() -> None:
    site = SkipTranscoder(read="a", predict="b").bind({"a": D_IN, "b": 5})
    sae, x = make_sae(TopK(d_sae=D_SAE, k=3), site=site, d_out=5), random((2, 3, D_IN))
    y_hat = sae(x)
    assert y_hat.shape == (2, 3, 5)
    torch.testing.assert_close(y_hat.view(6, 5), sae(x.view(6, D_IN)))
    torch.testing.assert_close(sae.decode(sae.encode(x).to_dense(), x), y_hat)
    with pytest.raises(UserError, match=r"^x is missing, but SkipTranscoder .*\(2, 3, 7\)"):
        sae.decode(sae.encode(x))
    with pytest.raises(UserError, match=r"^x has shape \(6, 7\), but SkipTranscoder"):
        sae.decode(sae.encode(x), x.view(6, D_IN))


def test_cross_layer_transcoder_in_three_dimensions() -> None:
    site = CROSS_LAYER.bind({"a": D_IN, "c": D_IN, "b": 5, "d": 5})
    sae = make_sae(TopK(d_sae=D_SAE, k=4), site=site, d_out=10)
    x = random((2, 3, 2 * D_IN))
    torch.testing.assert_close(sae(x).view(6, 10), sae(x.view(6, 2 * D_IN)))
    with pytest.raises(UserError, match=r"x has shape \(2, 7\).*d_in=14 at a, c"):
        sae.encode(random((2, D_IN)))


@pytest.mark.parametrize("shape", [(3,), (2, 8), (2, 3, 6), (), (2, 3, 0)], ids=str)
def test_wrong_width_names_the_argument_its_shape_and_d_in(shape) -> None:
    sae = make_sae(TopK(d_sae=D_SAE, k=3), site=Autoencoder(hook="layers.1"))
    message = rf"^x has shape \({', '.join(map(str, shape))},?\), but .*d_in=7 at layers\.1$"
    for call in (sae, sae.encode, sae.encode_training):
        with pytest.raises(UserError, match=message):
            call(random(shape))


@pytest.mark.parametrize("shape", [(D_IN,), (2, D_SAE + 1), ()], ids=str)
def test_wrong_width_of_dense_codes_names_d_sae(shape) -> None:
    sae = make_sae(TopK(d_sae=D_SAE, k=3))
    with pytest.raises(UserError, match=r"^codes has shape .*\[\.\.\., d_sae\] with d_sae=22$"):
        sae.decode(random(shape))


def test_training_codes_are_rows() -> None:
    encoded = make_sae(TopK(d_sae=D_SAE, k=3)).encode_training(random((2, 3, D_IN)))
    assert isinstance(encoded.codes, Codes) and encoded.codes.to_dense().shape == (6, D_SAE)
