from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encoder_cases import (
    TRITON_ONLY,
    assert_well_formed,
    each_dtype,
    forbid_sync,
    gradients,
    integers,
    problem,
    set_chunk_rows,
)
from kernel_cases import (
    SHAPES,
    assert_as_accurate,
    device,
    each_backend,
    each_shape,
    given,
    leaves,
    mark_slow_in_interpreter,
    normal,
    settings,
    st,
    tokens_first,
)
from sae_kernels import reference
from sae_kernels.encode_threshold import encode_jumprelu, encode_threshold
from sae_kernels.row_grads import RowGrads

NAMES = ["x", "W_enc", "b_enc", "b_dec", "threshold"]
BANDWIDTH = 3.0


def thresholds(kind: str, d_sae: int) -> Tensor | None:
    """Return thresholds that are multiples of 1/2: on the values, between them and below zero."""
    if kind == "one":
        return torch.tensor(2.0, dtype=torch.float64)
    return integers(d_sae, seed=6, most=6) / 2 + 2 if kind == "per-latent" else None


def threshold_outputs(args: list[Tensor], threshold: Tensor | None, backend: str, **more):
    x, W_enc, b_enc, b_dec = args
    return encode_threshold(x, W_enc, b_enc, b_dec, threshold=threshold, backend=backend, **more)


@each_backend
@each_dtype
@pytest.mark.parametrize("kind", ["relu", "one", "per-latent"])
def test_values_and_gradients_of_every_input(backend, dtype, kind):
    shape = SHAPES[1]  # test_jumprelu_and_its_threshold has the others; the kernels are the same
    inputs, threshold = problem(*shape[:3]), thresholds(kind, shape[2])
    results = []
    for implementation, as_dtype in (
        (backend, dtype),
        ("reference", dtype),
        ("reference", torch.float64),
    ):
        dev = device(implementation)
        theta = None if threshold is None else threshold.to(dev, torch.float32)
        args = leaves(*inputs, dtype=as_dtype, device=dev)
        codes = threshold_outputs(args, theta, implementation)
        assert_well_formed(codes, as_dtype)
        results.append([codes.to_dense(), *gradients([codes.to_dense()], args)])
        if implementation == backend:
            fast_codes = codes
            assert results[0][2].t().is_contiguous(), "W_enc's gradient must be latent-major"
    assert torch.equal(fast_codes.offsets.cpu(), codes.offsets)
    results[1][4] = [results[1][4], tokens_first(inputs[1], results[2][3], dtype)]
    for name, got, plain_value, true_value in zip(["values", *NAMES], *results, strict=False):
        assert_as_accurate(got, plain_value, true_value, name)


@each_backend
@each_dtype
@each_shape
def test_jumprelu_and_its_threshold(backend, dtype, shape):
    inputs, threshold = problem(*shape[:3]), thresholds("per-latent", shape[2])
    results = []
    for implementation, as_dtype in (
        (backend, dtype),
        ("reference", dtype),
        ("reference", torch.float64),
    ):
        dev = device(implementation)
        args = leaves(*inputs, dtype=as_dtype, device=dev)
        theta_dtype = torch.promote_types(as_dtype, torch.float32)
        args += leaves(threshold, dtype=theta_dtype, device=dev)
        x, W_enc, b_enc, b_dec, theta = args
        codes, gates = encode_jumprelu(
            x, W_enc, b_enc, theta, b_dec, bandwidth=BANDWIDTH, backend=implementation
        )
        assert_well_formed(codes, as_dtype)
        assert gates.dtype == as_dtype and gates.shape == codes.values.shape
        assert torch.equal(gates, (codes.values != 0).to(as_dtype))
        gates = type(codes)(gates, codes.indices, codes.d_sae, codes.offsets)
        dense = [codes.to_dense(), gates.to_dense()]
        results.append([*dense, *gradients(dense, args)])
        if implementation == backend:
            fast_codes = codes
            assert results[0][-1].dtype == theta_dtype
    assert torch.equal(fast_codes.offsets.cpu(), codes.offsets), "other slots than the reference"
    results[1][5] = [results[1][5], tokens_first(inputs[1], results[2][4], dtype)]
    for name, got, plain_value, true_value in zip(
        ["values", "gates", *NAMES], *results, strict=True
    ):
        assert_as_accurate(got, plain_value, true_value, name)


@each_backend
@each_dtype
@mark_slow_in_interpreter
def test_gradient_of_a_shared_threshold_is_the_sum(backend, dtype):
    args = leaves(*problem(7, 5, 33), dtype=dtype, device=device(backend))
    wide = torch.promote_types(dtype, torch.float32)
    grads = []
    for shape in ((), (33,)):
        theta = torch.full(shape, 2.3, dtype=wide, device=device(backend), requires_grad=True)
        codes, gates = encode_jumprelu(*args[:3], theta, args[3], bandwidth=2.0, backend=backend)
        cotangents = [normal(len(gates), seed=i).to(gates) for i in (1, 2)]
        grads.append(torch.autograd.grad([codes.values, gates], theta, cotangents)[0])
    torch.testing.assert_close(grads[0], grads[1].sum(), rtol=1e-5, atol=1e-5)


@each_backend
def test_window_edges_computed_by_hand(backend):
    """With theta 2 and bandwidth 2, pre > 2 fires, and 1 < pre < 3 moves the threshold."""
    dev = device(backend)
    pre = torch.tensor([[-5.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]], device=dev)
    x, W_enc = torch.ones(1, 1, device=dev), torch.zeros(1, 8, device=dev)
    theta = torch.full((8,), 2.0, device=dev, requires_grad=True)
    b_enc = pre[0].clone().requires_grad_()
    codes, gates = encode_jumprelu(x, W_enc, b_enc, theta, bandwidth=2.0, backend=backend)
    assert codes.indices.tolist() == [3, 4, 5, 6, 7]
    assert codes.values.tolist() == [0, 0, 2.5, 3, 4]
    assert gates.tolist() == [0, 0, 1, 1, 1]
    d_theta, d_b = torch.autograd.grad(codes.values.sum(), [theta, b_enc], retain_graph=True)
    assert d_theta.tolist() == [0, 0, 0, -1, -1, -1, 0, 0]
    assert d_b.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    (d_theta,) = torch.autograd.grad(gates.sum(), theta)
    assert d_theta.tolist() == [0, 0, 0, -0.5, -0.5, -0.5, 0, 0]


@each_backend
def test_negative_threshold_acts_as_zero_and_gets_a_gradient(backend):
    dev = device(backend)
    b_enc = torch.tensor([-0.25, 0.0, 0.25, 2.0], device=dev)
    x, W_enc = torch.ones(1, 1, device=dev), torch.zeros(1, 4, device=dev)
    theta = torch.full((4,), -1.0, device=dev, requires_grad=True)
    fired = encode_threshold(x, W_enc, b_enc, threshold=theta, backend=backend)
    assert fired.indices.tolist() == [2, 3]
    codes, gates = encode_jumprelu(x, W_enc, b_enc, theta, bandwidth=1.0, backend=backend)
    assert codes.values.tolist() == [0, 0, 0.25, 2]
    (d_theta,) = torch.autograd.grad(gates.sum(), theta)
    assert d_theta.tolist() == [-1, -1, -1, 0]


@each_backend
@pytest.mark.parametrize("b_enc", [-100.0, 100.0], ids=["nothing fires", "everything fires"])
def test_no_latent_or_every_latent_fires(backend, b_enc):
    x, W_enc, _, b_dec = problem(5, 3, 40)
    inputs = [x, W_enc, torch.full((40,), b_enc), b_dec]
    args = leaves(*inputs, dtype=torch.float32, device=device(backend))
    codes = threshold_outputs(args, None, backend)
    assert codes.offsets.tolist() == [0 if b_enc < 0 else 40 * row for row in range(6)]
    grads = gradients([codes.to_dense()], args)
    assert all((g == 0).all() for g in grads) == (b_enc < 0)


@each_backend
def test_empty_batch(backend):
    args = leaves(*problem(0, 4, 30), dtype=torch.float32, device=device(backend))
    theta = torch.ones(30, device=device(backend), requires_grad=True)
    codes, gates = encode_jumprelu(*args[:3], theta, args[3], bandwidth=1.0, backend=backend)
    assert codes.offsets.tolist() == [0] and codes.values.shape == gates.shape == (0,)
    grads = torch.autograd.grad(codes.values.sum() + gates.sum(), [*args, theta])
    assert all((g == 0).all() for g in grads)


@each_backend
def test_nan_and_inf(backend):
    """NaN has a slot and no gradient; inf is an ordinary value."""
    args = leaves(*problem(4, 5, 70), dtype=torch.float32, device=device(backend))
    theta = torch.full((70,), 2.0, device=device(backend), requires_grad=True)
    with torch.no_grad():
        args[0][1, 2] = float("nan")
        args[2][7], args[2][8], args[2][9] = float("inf"), float("-inf"), float("nan")
    codes, gates = encode_jumprelu(*args[:3], theta, args[3], bandwidth=1.0, backend=backend)
    acts = codes.to_dense()
    assert acts[1].isnan().all()
    for row in (0, 2, 3):
        assert acts[row, 7] == float("inf") and acts[row, 8] == 0 and acts[row, 9].isnan()
    listed = codes.values.detach()
    assert (gates[listed.isnan()] == 1).all()
    d_b, d_theta = torch.autograd.grad([codes.values, gates], [args[2], theta], [listed, gates])
    assert d_theta.isfinite().all() and d_theta[7] == d_theta[9] == d_b[9] == 0


@TRITON_ONLY
@pytest.mark.parametrize("capacity", [0, 1, 37, 500])
def test_capacity_drops_the_end_of_the_batch(backend, capacity, monkeypatch):
    """The slots that fit are the first ones; the rest is counted and gets no gradient."""
    set_chunk_rows(2, 33, torch.float32, backend, monkeypatch)
    inputs = [*problem(7, 5, 33), thresholds("per-latent", 33)]
    dev = device(backend)
    args = leaves(*inputs, dtype=torch.float32, device=dev)
    want, want_gates = encode_jumprelu(
        *args[:3], args[4], args[3], bandwidth=BANDWIDTH, backend=backend
    )
    nnz = len(want.values)
    assert 37 < nnz < 500 and want.dropped is None
    fits = min(capacity, nnz)
    codes, gates = encode_jumprelu(
        *args[:3], args[4], args[3], bandwidth=BANDWIDTH, capacity=capacity, backend=backend
    )
    assert codes.dropped.item() == nnz - fits
    assert codes.offsets.tolist() == want.offsets.clamp(max=capacity).tolist()
    assert_well_formed(codes, torch.float32)
    assert len(codes.values) == capacity
    for got, all_slots in ((codes.values, want.values), (codes.indices, want.indices)):
        assert torch.equal(got[:fits], all_slots[:fits])
    cotangents = [normal(nnz, seed=i, dtype=torch.float32).to(dev) for i in (0, 1)]
    grads = torch.autograd.grad(
        [want.values[:fits], want_gates[:fits]], args, [c[:fits] for c in cotangents]
    )
    cotangents = [
        torch.nn.functional.pad(c, (0, capacity), value=3.0)[:capacity] for c in cotangents
    ]
    with_padding = torch.autograd.grad([codes.values, gates], args, cotangents)
    for name, got, expected in zip(NAMES, with_padding, grads, strict=True):
        torch.testing.assert_close(got, expected, msg=name)


@TRITON_ONLY
def test_with_a_capacity_nothing_waits_for_the_device(backend):
    args = leaves(*problem(7, 5, 33), dtype=torch.float32, device=device(backend))
    theta = torch.full((33,), 2.0, device=device(backend), requires_grad=True)
    with forbid_sync():
        codes, gates = encode_jumprelu(
            *args[:3], theta, args[3], bandwidth=1.0, capacity=50, backend=backend
        )
        torch.autograd.grad(codes.values.sum() + gates.sum(), [*args, theta])
        threshold_outputs(args, theta, backend, capacity=50)
    with pytest.raises(RuntimeError, match="synchroniz"), forbid_sync():
        threshold_outputs(args, theta, backend)


def test_capacity_has_no_effect_on_cpu():
    args = problem(7, 5, 33)
    codes = threshold_outputs(args, None, "torch", capacity=1)
    assert len(codes.values) > 1 and codes.dropped is None


@each_backend
def test_chunks_do_not_change_the_result(backend, monkeypatch):
    inputs = [t.to(device(backend)) for t in problem(11, 9, 40)]
    theta = thresholds("per-latent", 40).to(device(backend))
    one_chunk = threshold_outputs(inputs, theta, backend)
    set_chunk_rows(4, 40, torch.float64, backend, monkeypatch)
    chunked = threshold_outputs(inputs, theta, backend)
    for name in ("values", "indices", "offsets"):
        assert torch.equal(getattr(chunked, name), getattr(one_chunk, name)), name


@each_backend
def test_autocast_changes_nothing(backend, monkeypatch):
    monkeypatch.setattr("sae_kernels.matmul._has_onednn", lambda: False)  # it ignores autocast
    args = [t.to(device(backend), torch.float32) / 3 for t in problem(6, 50, 70)]
    want = threshold_outputs(args, None, backend)
    with torch.autocast(device(backend), dtype=torch.bfloat16):
        got = threshold_outputs(args, None, backend)
    assert torch.equal(got.to_dense(), want.to_dense())


@each_backend
def test_no_b_dec_and_a_W_enc_that_is_not_latent_major(backend):
    x, W_enc, b_enc, _ = problem(9, 20, 61)
    grads = []
    for implementation, W in ((backend, W_enc.contiguous()), ("reference", W_enc)):
        args = leaves(x, W, b_enc, dtype=torch.float64, device=device(implementation))
        grads.append(gradients([encode_threshold(*args, backend=implementation).to_dense()], args))
    for name, got, want in zip(NAMES, *grads, strict=False):
        assert_as_accurate(got, want, want, name)


@each_backend
def test_gradient_of_W_enc_in_parts_equals_the_dense_one(backend):
    args = leaves(*problem(9, 6, 30), dtype=torch.float64, device=device(backend))
    want = gradients([threshold_outputs(args, None, backend).to_dense()], args)[1]
    args[1].row_grads = RowGrads()
    dense = threshold_outputs(args, None, backend).to_dense()
    dense.backward(normal(*dense.shape, seed=7).to(dense.device))
    assert args[1].grad is None
    got = reference.dense_gradient(args[1].t().shape, None, args[1].row_grads).t()
    torch.testing.assert_close(got, want)


@each_backend
def test_two_runs_give_the_same_bits(backend):
    runs = []
    for _ in range(2):
        args = leaves(
            normal(7, 20, seed=0),
            normal(37, 20, seed=1).t(),
            normal(37, seed=2),
            normal(37, seed=3).abs(),
            dtype=torch.float32,
            device=device(backend),
        )
        codes, gates = encode_jumprelu(*args, bandwidth=2.0, backend=backend)
        grads = torch.autograd.grad([codes.values, gates], args, [codes.values, gates + 1])
        runs.append([codes.values, codes.indices, gates, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 40),
    d_in=st.integers(1, 9),
    d_sae=st.integers(1, 70),
    quantile=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_density(batch, d_in, d_sae, quantile, seed):
    x, W_enc = normal(batch, d_in, seed=seed), normal(d_sae, d_in, seed=seed + 1).t()
    b_enc = normal(d_sae, seed=seed + 2)
    theta = (x @ W_enc + b_enc).quantile(quantile)  # equal to one of the values, or between two
    got, want = (
        encode_threshold(x, W_enc, b_enc, threshold=theta, backend=backend)
        for backend in ("torch", "reference")
    )
    torch.testing.assert_close(got.to_dense(), want.to_dense())


def test_second_derivatives_raise():
    args = leaves(*problem(4, 5, 30), dtype=torch.float64)
    theta = torch.full((30,), 2.0, dtype=torch.float64, requires_grad=True)
    codes, _ = encode_jumprelu(*args[:3], theta, args[3], bandwidth=1.0)
    first = torch.autograd.grad(codes.values.square().sum(), theta, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_invalid_settings_are_refused(backend):
    x, W_enc, b_enc, _ = problem(2, 4, 30)
    with pytest.raises(ValueError, match=r"threshold has shape \(29,\).* d_sae=30"):
        encode_threshold(x, W_enc, b_enc, threshold=torch.ones(29), backend=backend)
    with pytest.raises(ValueError, match="capacity=-1 must not be negative"):
        encode_threshold(x, W_enc, b_enc, capacity=-1, backend=backend)
    for bandwidth in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"bandwidth={bandwidth} must be positive"):
            encode_jumprelu(x, W_enc, b_enc, torch.ones(30), bandwidth=bandwidth, backend=backend)
