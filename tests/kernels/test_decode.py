from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernel_cases import (
    assert_as_accurate,
    device,
    each_backend,
    each_dtype,
    each_shape,
    leaves,
    normal,
    ragged,
    sum_over_tokens,
)
from sae_kernels.codes import Codes
from sae_kernels.decode import decode

NAMES = ["x_hat", "values", "W_dec", "b_dec"]


def fixed(shape: tuple[int, int, int, int]) -> Codes:
    """Return codes with latent 0 in every row, empty slots, and half of the latents unused."""
    batch, _, d_sae, k = shape
    generator = torch.Generator().manual_seed(3)
    used = max(k, d_sae // 2)
    indices = torch.stack([torch.randperm(used, generator=generator)[:k] for _ in range(batch)])
    first = (indices == 0).nonzero()
    indices[:, 0], indices[first[:, 0], first[:, 1]] = 0, indices[first[:, 0], 0]
    values = normal(batch, k, seed=5)
    values[torch.rand(batch, k, generator=generator) < 0.1] = 0
    return Codes(values, indices, d_sae)


def check(codes: Codes, d_in: int, backend: str, dtype: torch.dtype) -> None:
    W_dec, b_dec = normal(codes.d_sae, d_in, seed=6), normal(d_in, seed=7)
    cotangent = normal(codes.batch, d_in, seed=8)

    def run(implementation: str, kind: torch.dtype) -> list[torch.Tensor]:
        dev = device(implementation)
        args = leaves(codes.values, W_dec, b_dec, dtype=kind, device=dev)
        offsets = None if codes.offsets is None else codes.offsets.to(dev)
        codes_on_device = Codes(args[0], codes.indices.to(dev), codes.d_sae, offsets)
        x_hat = decode(codes_on_device, *args[1:], backend=implementation)
        return [x_hat, *torch.autograd.grad(x_hat, args, cotangent.to(dev, kind))]

    truth, plain = run("reference", torch.float64), run("reference", dtype)
    in_order = sum_over_tokens(codes, codes.values.to(dtype), cotangent.to(dtype))
    plain[2] = [plain[2], in_order]
    for name, got, plain_value, true_value in zip(
        NAMES, run(backend, dtype), plain, truth, strict=True
    ):
        assert_as_accurate(got, plain_value, true_value, name)
        assert got.is_contiguous()


@each_backend
@each_dtype
@each_shape
def test_values_and_gradients_of_every_input(backend, dtype, shape):
    check(fixed(shape), shape[1], backend, dtype)


@each_backend
@each_dtype
@pytest.mark.parametrize(
    "lengths",
    [[3, 0, 7, 1, 0], [0, 0, 2], [0, 0], [63], [1] * 37],
    ids=["mixed", "empty-first", "all-empty", "one-row", "ones"],
)
def test_ragged_codes(backend, dtype, lengths):
    check(ragged(lengths, 50, seed=2, dtype=torch.float64), 37, backend, dtype)


@each_backend
def test_rows_wider_than_a_block(backend, monkeypatch):
    if backend == "triton":
        monkeypatch.setattr("sae_kernels.gpu.row_grads.BLOCK_WIDTH", 16)
    check(fixed((5, 50, 20, 10)), 50, backend, torch.float32)


@each_backend
def test_a_latent_on_every_token_of_a_long_batch(backend):
    """A sum over 4,000 tokens of one latent may lose what adding them in order in fp32 loses."""
    batch = 150 if backend == "triton" else 4000
    indices = torch.zeros(batch, 2, dtype=torch.int64)
    indices[:, 1] = 2
    check(Codes(normal(batch, 2, seed=1), indices, 3), 5, backend, torch.float32)


@each_backend
def test_two_runs_give_the_same_bits(backend):
    codes = fixed((7, 50, 77, 13))
    runs = []
    for _ in range(2):
        dev = device(backend)
        args = leaves(
            codes.values,
            normal(77, 50, seed=1),
            normal(50, seed=2),
            dtype=torch.float32,
            device=dev,
        )
        x_hat = decode(Codes(args[0], codes.indices.to(dev), 77), *args[1:], backend=backend)
        runs.append([x_hat, *torch.autograd.grad(x_hat.square().sum(), args)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@each_backend
def test_only_inputs_that_require_grad_get_one(backend):
    codes = fixed((5, 6, 40, 3))
    dev = device(backend)
    codes = Codes(codes.values.to(dev), codes.indices.to(dev), 40)
    W_dec, b_dec = normal(40, 6, seed=1).to(dev), normal(6, seed=2).to(dev).requires_grad_()
    x_hat = decode(codes, W_dec, b_dec, backend=backend)
    x_hat.sum().backward()
    assert b_dec.grad.tolist() == [5.0] * 6 and W_dec.grad is None
    assert not decode(codes, W_dec, b_dec.detach(), backend=backend).requires_grad


def test_second_derivatives_raise():
    codes = fixed((5, 6, 40, 3))
    values, W_dec = leaves(codes.values, normal(40, 6, seed=1), dtype=torch.float64)
    x_hat = decode(replace(codes, values=values), W_dec, normal(6, seed=2))
    first = torch.autograd.grad(x_hat.square().sum(), W_dec, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_W_dec_of_another_d_sae_is_refused():
    with pytest.raises(ValueError, match="W_dec has 39 rows but the codes have d_sae=40"):
        decode(fixed((5, 6, 40, 3)), torch.zeros(39, 6, dtype=torch.float64), torch.zeros(6))
