from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernel_cases import (
    BACKENDS,
    assert_as_accurate,
    device,
    each_backend,
    each_dtype,
    each_shape,
    given,
    leaves,
    normal,
    ragged,
    settings,
    st,
)
from sae_kernels.codes import Codes
from sae_kernels.decode_error import decode_error
from sae_kernels.reference import dense_gradient
from sae_kernels.row_grads import RowGrads

NAMES = ["residual", "squared_error", "values", "W_dec", "b_dec", "target"]
CLOSE = {torch.float64: 1e-14, torch.float32: 1e-6}


def fixed(shape: tuple[int, int, int, int]) -> Codes:
    """Return codes in which latents repeat, also within a row, and some slots are empty."""
    batch, _, d_sae, k = shape
    generator = torch.Generator().manual_seed(3)
    values = normal(batch, k, seed=5)
    values[torch.rand(batch, k, generator=generator) < 0.1] = 0
    return Codes(values, torch.randint(d_sae, (batch, k), generator=generator), d_sae)


def padded(codes: Codes, extra: int) -> Codes:
    nothing = torch.zeros(extra, dtype=torch.int64)
    values = torch.cat([codes.values, nothing.to(codes.values.dtype)])
    return replace(codes, values=values, indices=torch.cat([codes.indices, nothing]), _pairs=None)


def run(codes: Codes, d_in: int, implementation: str, dtype: torch.dtype) -> list[torch.Tensor]:
    dev = device(implementation)
    inputs = codes.values, normal(codes.d_sae, d_in, seed=6), normal(d_in, seed=7)
    args = leaves(*inputs, normal(codes.batch, d_in, seed=4), dtype=dtype, device=dev)
    offsets = None if codes.offsets is None else codes.offsets.to(dev)
    codes_on_device = Codes(args[0], codes.indices.to(dev), codes.d_sae, offsets)
    residual, error = decode_error(codes_on_device, *args[1:], backend=implementation)
    assert not residual.requires_grad
    grads = list(torch.autograd.grad(error * -0.7, args))
    if offsets is not None:  # gradients of padding have no meaning
        grads[0] = grads[0][: offsets[-1]]
    return [residual, error.detach(), *grads]


def check(codes: Codes, d_in: int, backend: str, dtype: torch.dtype) -> None:
    truth, plain = (run(codes, d_in, "reference", kind) for kind in (torch.float64, dtype))
    got = run(codes, d_in, backend, dtype)
    for name, got_value, plain_value, true_value in zip(NAMES, got, plain, truth, strict=True):
        if name == "squared_error":  # its squares are those of the rounded residual
            assert got_value.dtype == plain_value.dtype
            true_value = got[0].cpu().double().square().sum()
            torch.testing.assert_close(
                got_value.cpu().double(), true_value, rtol=CLOSE[got_value.dtype], atol=0
            )
        else:
            assert_as_accurate(got_value, plain_value, true_value, name)


@each_backend
@each_dtype
@each_shape
def test_values_and_gradients_of_every_input(backend, dtype, shape):
    check(fixed(shape), shape[1], backend, dtype)


@each_backend
@each_dtype
@pytest.mark.parametrize(
    "lengths", [[3, 0, 7, 1, 0], [0, 0], [63]], ids=["mixed", "all-empty", "one-row"]
)
def test_ragged_codes_with_padding(backend, dtype, lengths):
    codes = ragged(lengths, 50, seed=2, dtype=torch.float64)
    check(codes, 37, backend, dtype)
    check(padded(codes, 4), 37, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    d_in=st.integers(1, 40),
    d_sae=st.integers(1, 30),
    extra=st.integers(0, 3),
)
def test_any_lengths(backend, lengths, d_in, d_sae, extra):
    codes = ragged(lengths, d_sae, seed=d_in, dtype=torch.float64)
    check(padded(codes, extra), d_in, backend, torch.float64)


@each_backend
def test_rows_wider_than_a_block(backend, monkeypatch):
    if backend == "triton":
        monkeypatch.setattr("sae_kernels.gpu.decode_error._BLOCK_WIDTH", 16)
    else:
        monkeypatch.setattr("sae_kernels.cpu.decode_error.NORM_ROWS", 2)
    check(fixed((5, 50, 20, 10)), 50, backend, torch.float32)


@each_backend
def test_long_sum_of_squares_is_accurate(backend):
    """A single fp32 sum of this many equal squares would have a larger error."""
    batch, d_in = (40, 8) if backend == "triton" else (3000, 500)
    codes = Codes(torch.zeros(batch, 1), torch.zeros(batch, 1, dtype=torch.int64), 2)
    target = torch.full((batch, d_in), 1.1)
    codes = Codes(*(t.to(device(backend)) for t in (codes.values, codes.indices)), 2)
    zeros = torch.zeros(2, d_in, device=device(backend))
    error = decode_error(codes, zeros, zeros[0], target.to(zeros.device), backend=backend)[1]
    assert error.item() == pytest.approx(target.double().square().sum().item(), rel=1e-6)


@each_backend
def test_two_runs_give_the_same_bits(backend):
    codes = fixed((7, 50, 77, 13))
    first, second = (run(codes, 50, backend, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_backend
def test_inf_affects_only_its_row(backend):
    codes = fixed((3, 6, 9, 2))
    target = normal(3, 6, seed=1)
    target[1, 2] = torch.inf
    dev = device(backend)
    codes_on_device = Codes(codes.values.to(dev), codes.indices.to(dev), 9)
    W_dec = normal(9, 6, seed=2).to(dev)
    residual, error = decode_error(
        codes_on_device, W_dec, W_dec[0], target.to(dev), backend=backend
    )
    assert error.item() == torch.inf and residual.isfinite().sum() == 17


@each_backend
def test_gradient_of_W_dec_in_parts_equals_the_dense_one(backend):
    codes, dev = fixed((7, 5, 12, 3)), device(backend)
    W_dec, target = normal(12, 5, seed=1).to(dev), normal(7, 5, seed=2).to(dev)

    def backward(sink: RowGrads | None) -> torch.Tensor:
        args = W_dec.clone().requires_grad_()
        args.row_grads = sink
        codes_on_device = Codes(codes.values.to(dev), codes.indices.to(dev), 12)
        (3 * decode_error(codes_on_device, args, target[0], target, backend=backend)[1]).backward()
        return args.grad

    sink = RowGrads()
    assert backward(sink) is None and len(sink.pair_parts) == 1
    torch.testing.assert_close(dense_gradient(W_dec.shape, None, sink), backward(None))


@each_backend
def test_only_inputs_that_require_grad_get_one(backend):
    codes, dev = fixed((5, 6, 40, 3)), device(backend)
    codes = Codes(codes.values.to(dev), codes.indices.to(dev), 40)
    W_dec, target = normal(40, 6, seed=1).to(dev), normal(5, 6, seed=2).to(dev)
    b_dec = normal(6, seed=3).to(dev).requires_grad_()
    residual, error = decode_error(codes, W_dec, b_dec, target, backend=backend)
    error.backward()
    torch.testing.assert_close(b_dec.grad, -2 * residual.sum(0))
    assert W_dec.grad is None
    assert not decode_error(codes, W_dec, b_dec.detach(), target, backend=backend)[1].requires_grad


def test_second_derivatives_raise():
    codes = fixed((5, 6, 40, 3))
    values, W_dec = leaves(codes.values, normal(40, 6, seed=1), dtype=torch.float64)
    target = normal(5, 6, seed=2)
    error = decode_error(replace(codes, values=values), W_dec, target[0], target)[1]
    first = torch.autograd.grad(error.square(), W_dec, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_residual_must_not_change_before_the_backward_pass():
    codes = fixed((5, 6, 40, 3))
    W_dec, target = normal(40, 6, seed=1).requires_grad_(), normal(5, 6, seed=2)
    residual, error = decode_error(codes, W_dec, target[0], target)
    residual.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        error.backward()


def test_mismatched_shapes_are_refused():
    codes, W_dec = fixed((5, 6, 40, 3)), normal(40, 6, seed=1)
    with pytest.raises(ValueError, match="W_dec has 39 rows but the codes have d_sae=40"):
        decode_error(codes, W_dec[:39], W_dec[0], W_dec[:5])
    with pytest.raises(ValueError, match=r"target has shape \(4, 6\).*make \(5, 6\)"):
        decode_error(codes, W_dec, W_dec[0], W_dec[:4])
