from __future__ import annotations

import pytest
import torch

from kernel_cases import (
    BACKENDS,
    assert_as_accurate,
    device,
    each_backend,
    each_shape,
    given,
    leaves,
    normal,
    ragged,
    settings,
    slow_in_interpreter,
    st,
)
from sae_kernels.codes import Codes
from sae_kernels.decode_error import decode_error
from sae_kernels.decode_prefixes import decode_prefixes, matryoshka_levels, rank_levels
from sae_kernels.row_grads import RowGrads

NAMES = ["squared_errors", "values", "W_dec", "b_dec", "target"]
each_kind = pytest.mark.parametrize("kind", ["matryoshka", "rank"])
# Not every dtype for each kind: a case takes a second in the interpreter.
each_kind_and_dtype = pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("matryoshka", torch.bfloat16),
        slow_in_interpreter("rank", torch.float32),
        ("rank", torch.float64),
    ],
    ids=["matryoshka-bfloat16", "rank-float32", "rank-float64"],
)


def fixed(shape: tuple[int, int, int, int]) -> Codes:
    """Return codes in which latents repeat, also within a row, values tie and some are 0."""
    batch, _, d_sae, k = shape
    generator = torch.Generator().manual_seed(3)
    values = (4 * normal(batch, k, seed=5)).round() / 4
    return Codes(values, torch.randint(d_sae, (batch, k), generator=generator), d_sae)


def padded(codes: Codes, extra: int) -> Codes:
    values = torch.cat([codes.values, codes.values.new_zeros(extra)])
    indices = torch.cat([codes.indices, codes.indices.new_zeros(extra)])
    return Codes(values, indices, codes.d_sae, codes.offsets)


def levels_of(codes: Codes, kind: str) -> tuple[torch.Tensor, int]:
    if kind == "rank":
        levels = rank_levels(codes)
        return levels, int(levels.max()) + 1 if levels.numel() else 1
    prefixes = sorted({(codes.d_sae + 3) // 4, (codes.d_sae + 1) // 2, codes.d_sae})
    return matryoshka_levels(codes, prefixes), len(prefixes)


def run(codes, levels, n_levels, d_in, implementation, dtype) -> list[torch.Tensor]:
    dev = device(implementation)
    inputs = codes.values, normal(codes.d_sae, d_in, seed=6), normal(d_in, seed=7)
    args = leaves(*inputs, normal(codes.batch, d_in, seed=8), dtype=dtype, device=dev)
    offsets = None if codes.offsets is None else codes.offsets.to(dev)
    codes_on_device = Codes(args[0], codes.indices.to(dev), codes.d_sae, offsets)
    errors = decode_prefixes(
        codes_on_device, levels.to(dev), n_levels, *args[1:], backend=implementation
    )
    cotangent = normal(n_levels, seed=9).to(dev, errors.dtype)
    grads = list(torch.autograd.grad(errors, args, cotangent))
    if offsets is not None:
        grads[0], padding = grads[0].tensor_split([int(offsets[-1])])
        assert implementation == "reference" or not padding.any()
    return [errors.detach(), *grads]


def check(codes, levels, n_levels, d_in, backend, dtype) -> None:
    truth, plain, got = (
        run(codes, levels, n_levels, d_in, *run_as)
        for run_as in (("reference", torch.float64), ("reference", dtype), (backend, dtype))
    )
    for name, got_value, plain_value, true_value in zip(NAMES, got, plain, truth, strict=True):
        assert_as_accurate(got_value, plain_value, true_value, name)


@each_backend
@each_kind_and_dtype
@each_shape
def test_values_and_gradients_of_every_input(backend, kind, dtype, shape):
    codes = fixed(shape)
    check(codes, *levels_of(codes, kind), shape[1], backend, dtype)


@each_backend
@each_kind_and_dtype
@pytest.mark.parametrize(
    "lengths", [[3, 0, 7, 1, 0], [0, 0], [40]], ids=["mixed", "all-empty", "one-row"]
)
def test_ragged_codes_with_padding(backend, kind, dtype, lengths):
    codes = ragged(lengths, 50, seed=2, dtype=torch.float64)
    check(codes, *levels_of(codes, kind), 37, backend, dtype)
    levels, n_levels = levels_of(codes, kind)
    anything = torch.tensor([-5, 10**6, 0])
    check(padded(codes, 3), torch.cat([levels, anything]), n_levels, 37, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    d_in=st.integers(1, 40),
    d_sae=st.integers(1, 30),
    n_levels=st.integers(1, 6),
    extra=st.integers(0, 3),
)
def test_any_levels(backend, lengths, d_in, d_sae, n_levels, extra):
    """Some levels are empty, also the first and the last."""
    codes = padded(ragged(lengths, d_sae, seed=d_in, dtype=torch.float64), extra)
    levels = torch.randint(n_levels, codes.values.shape, generator=torch.Generator().manual_seed(1))
    check(codes, levels, n_levels, d_in, backend, torch.float64)


def test_a_batch_of_a_thousand():
    codes = fixed((1000, 37, 200, 32))
    check(codes, *levels_of(codes, "rank"), 37, "torch", torch.float32)


@each_backend
@each_kind
def test_many_blocks_of_columns(backend, kind, monkeypatch):
    monkeypatch.setattr("sae_kernels.cpu.decode_prefixes._MIN_COLUMNS", 8)
    monkeypatch.setattr("sae_kernels.cpu.decode_prefixes._CHUNK_ELEMENTS", 0)
    if backend == "triton":
        monkeypatch.setattr("sae_kernels.gpu.decode_prefixes._CHUNK_ELEMENTS", 300)
        monkeypatch.setattr("sae_kernels.gpu.decode_prefixes._BLOCK_WIDTH", 4)
    codes = fixed((3, 21, 12, 4))
    check(codes, *levels_of(codes, kind), 21, backend, torch.float32)


@each_backend
@each_kind
def test_two_runs_give_the_same_bits(backend, kind):
    codes = fixed((4, 20, 12, 5))
    levels, n_levels = levels_of(codes, kind)
    runs = [run(codes, levels, n_levels, 20, backend, torch.float32) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@each_backend
def test_one_level_is_decode_error(backend):
    codes, dev = fixed((5, 6, 40, 3)), device(backend)
    codes = Codes(codes.values.to(dev), codes.indices.to(dev), 40)
    W_dec, target = normal(40, 6, seed=1).to(dev), normal(5, 6, seed=2).to(dev)
    every = torch.zeros_like(codes.indices)
    got = decode_prefixes(codes, every, 1, W_dec, W_dec[0], target, backend=backend)
    want = decode_error(codes, W_dec, W_dec[0], target, backend=backend)[1]
    torch.testing.assert_close(got, want[None], rtol=1e-13, atol=0)


@each_backend
def test_only_inputs_that_require_grad_get_one(backend):
    codes, dev = fixed((5, 6, 40, 3)), device(backend)
    codes = Codes(codes.values.to(dev), codes.indices.to(dev), 40)
    W_dec, target = normal(40, 6, seed=1).to(dev), normal(5, 6, seed=2).to(dev)
    b_dec, levels = normal(6, seed=3).to(dev).requires_grad_(), rank_levels(codes)
    decode_prefixes(codes, levels, 3, W_dec, b_dec, target, backend=backend).sum().backward()
    assert b_dec.grad.isfinite().all() and W_dec.grad is None
    plain = decode_prefixes(codes, levels, 3, W_dec, b_dec.detach(), target, backend=backend)
    assert not plain.requires_grad


def test_W_dec_gets_a_dense_gradient_despite_row_grads():
    codes, target = fixed((5, 6, 40, 3)), normal(5, 6, seed=2)
    W_dec = normal(40, 6, seed=1).requires_grad_()
    W_dec.row_grads = RowGrads()
    decode_prefixes(codes, rank_levels(codes), 3, W_dec, target[0], target).sum().backward()
    assert not W_dec.row_grads and W_dec.grad.abs().sum() > 0


def test_second_derivatives_raise():
    codes, target = fixed((5, 6, 40, 3)), normal(5, 6, seed=2)
    W_dec = normal(40, 6, seed=1).requires_grad_()
    errors = decode_prefixes(codes, rank_levels(codes), 3, W_dec, target[0], target)
    first = torch.autograd.grad(errors.square().sum(), W_dec, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_levels_of_a_matryoshka():
    codes = Codes(torch.ones(2, 4), torch.tensor([[0, 1, 2, 5], [9, 4, 3, 2]]), 10)
    assert matryoshka_levels(codes, [2, 5, 10]).tolist() == [[0, 0, 1, 2], [2, 1, 1, 1]]
    assert matryoshka_levels(codes, (10,)).tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("prefixes", [[], [2, 5], [5, 2, 10], [2, 2, 10], [0, 10], [2, 10, 11]])
def test_invalid_prefixes_are_refused(prefixes):
    codes = Codes(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), 10)
    with pytest.raises(ValueError, match="must be positive, ascending and end with 10"):
        matryoshka_levels(codes, prefixes)


def ranks(row: list[float]) -> list[int]:
    order = sorted(range(len(row)), key=lambda slot: -row[slot])  # stable
    return [order.index(slot) for slot in range(len(row))]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rows=st.lists(st.lists(st.integers(-2, 3), max_size=6), min_size=1), extra=st.integers(0, 2))
def test_ranks_of_ragged_rows(rows, extra):
    values = torch.tensor([float(value) for row in rows for value in row])
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    codes = Codes(values, torch.zeros(len(values), dtype=torch.int64), 5, offsets)
    want = [rank for row in rows for rank in ranks(row)]
    assert rank_levels(padded(codes, extra)).tolist() == want + [0] * extra


def test_ranks_of_rows_of_one_length():
    codes = fixed((20, 1, 9, 6))
    assert rank_levels(codes).tolist() == [ranks(row) for row in codes.values.tolist()]


def test_mismatched_shapes_are_refused():
    codes, W_dec = fixed((5, 6, 40, 3)), normal(40, 6, seed=1)
    levels = rank_levels(codes)
    with pytest.raises(ValueError, match="W_dec has 39 rows but the codes have d_sae=40"):
        decode_prefixes(codes, levels, 3, W_dec[:39], W_dec[0], W_dec[:5])
    with pytest.raises(ValueError, match=r"target has shape \(4, 6\).*make \(5, 6\)"):
        decode_prefixes(codes, levels, 3, W_dec, W_dec[0], W_dec[:4])
    with pytest.raises(ValueError, match=r"levels have shape \(4, 3\); the values \(5, 3\)"):
        decode_prefixes(codes, levels[:4], 3, W_dec, W_dec[0], W_dec[:5])
    for mismatches in (levels - 1, levels + 1):
        with pytest.raises(ValueError, match="levels must lie between 0 and n_levels - 1 = 2"):
            decode_prefixes(codes, mismatches, 3, W_dec, W_dec[0], W_dec[:5])
