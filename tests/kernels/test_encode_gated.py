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
    assert_as_accurate,
    device,
    each_backend,
    each_shape,
    given,
    leaves,
    normal,
    settings,
    st,
    tokens_first,
)
from sae_kernels import reference
from sae_kernels.encode_gated import encode_gated
from sae_kernels.row_grads import RowGrads

NAMES = ["x", "W_enc", "b_gate", "b_mag", "r_mag", "b_dec"]


def gated_problem(batch: int, d_in: int, d_sae: int) -> list[Tensor]:
    """Return inputs with exact integer gates, many of them 0, and inexact magnitude scales."""
    x, W_enc, b_gate, b_dec = problem(batch, d_in, d_sae)
    b_mag, r_mag = integers(d_sae, seed=8, most=3), integers(d_sae, seed=9, most=8) / 8
    b_mag[0], r_mag[0] = 3, -200  # padding has this index; exp(-200) is 0 in fp32
    return [x, W_enc, b_gate, b_mag, r_mag, b_dec]


def dense(outputs) -> list[Tensor]:
    return [codes.to_dense() for codes in outputs]


@each_backend
@each_dtype
@each_shape
def test_values_and_gradients_of_every_input(backend, dtype, shape):
    inputs = gated_problem(*shape[:3])
    results = []
    for implementation, as_dtype in (
        (backend, dtype),
        ("reference", dtype),
        ("reference", torch.float64),
    ):
        args = leaves(*inputs, dtype=as_dtype, device=device(implementation))
        codes, gates = encode_gated(*args, backend=implementation)
        for either in (codes, gates):
            assert_well_formed(either, as_dtype)
        acts = dense((codes, gates))
        results.append([*acts, *gradients(acts, args)])
        if implementation == backend:
            assert codes.by_latent() is gates.by_latent()
            assert codes.indices is gates.indices and codes.offsets is gates.offsets
            assert results[0][3].t().is_contiguous(), "W_enc's gradient must be latent-major"
            offsets = codes.offsets.cpu()
    assert torch.equal(offsets, codes.offsets)
    d_b_gate, d_b_mag = results[2][4:6]
    d_pre = d_b_gate + inputs[4].exp() * d_b_mag
    results[1][-1] = [results[1][-1], tokens_first(inputs[1], d_pre, dtype)]
    for name, got, plain_value, true_value in zip(
        ["codes", "gates", *NAMES], *results, strict=True
    ):
        assert_as_accurate(got, plain_value, true_value, name)


@each_backend
def test_values_and_gradients_computed_by_hand(backend):
    """With h = 1: a slot with an open gate and a negative magnitude is empty only in codes."""
    dev = device(backend)
    make = lambda *values: torch.tensor(values, device=dev, requires_grad=True)
    x, W_enc = torch.ones(1, 1, device=dev), torch.ones(1, 4, device=dev, requires_grad=True)
    b_gate, b_mag = make(1.0, 1.0, -1.0, -2.0), make(3.0, -5.0, 3.0, 3.0)
    r_mag = make(*[torch.tensor(2.0).log().item()] * 4)
    codes, gates = encode_gated(x, W_enc, b_gate, b_mag, r_mag, backend=backend)
    assert codes.indices.tolist() == [0, 1]
    assert codes.values.tolist() == [5, 0] and gates.values.tolist() == [2, 2]
    parameters = [W_enc, b_gate, b_mag, r_mag]
    grads = torch.autograd.grad(codes.values.sum(), parameters, retain_graph=True)
    want = [[[2, 0, 0, 0]], [0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]]
    assert [g.tolist() for g in grads] == want
    grads = torch.autograd.grad(gates.values.sum(), parameters)
    assert [g.tolist() for g in grads] == [[[1, 1, 0, 0]], [1, 1, 0, 0], [0] * 4, [0] * 4]


@each_backend
@pytest.mark.parametrize("output", ["codes", "gates"])
def test_gradients_of_one_output_equal_the_reference(backend, output):
    """If the loss uses one output, inputs it does not depend on get zeros, not None."""
    grads = []
    for kind in (backend, "reference"):
        args = leaves(*gated_problem(7, 5, 33), dtype=torch.float64, device=device(kind))
        codes, gates = encode_gated(*args, backend=kind)
        acts = (codes if output == "codes" else gates).to_dense()
        cotangent = normal(*acts.shape, seed=1).to(acts.device)
        grads.append(torch.autograd.grad(acts, args, cotangent, materialize_grads=True))
    for name, got, want in zip(NAMES, *grads, strict=True):
        assert_as_accurate(got, want, want, name)


@each_backend
def test_no_b_dec_and_a_W_enc_that_is_not_latent_major(backend):
    x, W_enc, *biases, _ = gated_problem(9, 20, 61)
    grads = []
    for implementation, W in ((backend, W_enc.contiguous()), ("reference", W_enc)):
        args = leaves(x, W, *biases, dtype=torch.float64, device=device(implementation))
        grads.append(gradients(dense(encode_gated(*args, backend=implementation)), args))
    for name, got, want in zip(NAMES, *grads, strict=False):
        assert_as_accurate(got, want, want, name)


@each_backend
@pytest.mark.parametrize("batch", [0, 5])
def test_without_slots_all_gradients_are_zero(backend, batch):
    args = leaves(*gated_problem(batch, 4, 30), dtype=torch.float32, device=device(backend))
    with torch.no_grad():
        args[2] -= 100
    codes, gates = encode_gated(*args, backend=backend)
    assert codes.offsets.tolist() == [0] * (batch + 1)
    grads = torch.autograd.grad(codes.values.sum() + gates.values.sum(), args)
    assert all((g == 0).all() for g in grads)


@each_backend
def test_nan_and_inf(backend):
    args = leaves(*gated_problem(4, 5, 70), dtype=torch.float32, device=device(backend))
    with torch.no_grad():
        args[0][1, 2] = float("nan")
        args[2][7], args[2][8] = float("inf"), float("-inf")
    codes, gates = encode_gated(*args, backend=backend)
    acts, gate_acts = dense((codes, gates))
    assert acts[1, :7].isnan().all() and gate_acts[1, :7].isnan().all()
    for row in (0, 2, 3):
        assert gate_acts[row, 7] == float("inf") and gate_acts[row, 8] == acts[row, 8] == 0
        assert acts[row].isfinite().all()
    cotangents = [torch.ones_like(codes.values), torch.ones_like(gates.values)]
    grads = torch.autograd.grad([codes.values, gates.values], args[2:5], cotangents)
    assert grads[0].tolist() == (gate_acts > 0).sum(0).tolist(), "NaN has gradient 0"
    assert grads[1].tolist() == (acts > 0).sum(0).tolist()
    assert grads[2].isfinite().all()


@TRITON_ONLY
@pytest.mark.parametrize("capacity", [37, 500])
def test_capacity_drops_the_end_of_the_batch(backend, capacity, monkeypatch):
    set_chunk_rows(2, 33, torch.float32, backend, monkeypatch)
    args = leaves(*gated_problem(7, 5, 33), dtype=torch.float32, device=device(backend))
    want = encode_gated(*args, backend=backend)
    nnz = len(want[0].values)
    fits = min(capacity, nnz)
    assert 37 < nnz < 500
    with forbid_sync():
        got = encode_gated(*args, capacity=capacity, backend=backend)
    for limited, full in zip(got, want, strict=True):
        assert limited.dropped.item() == nnz - fits and full.dropped is None
        assert_well_formed(limited, torch.float32)
        assert torch.equal(limited.values[:fits], full.values[:fits])
        assert torch.equal(limited.indices[:fits], full.indices[:fits])
    outputs = [codes.values for codes in want]
    cotangents = [normal(nnz, seed=i).to(outputs[0]) for i in (0, 1)]
    grads = torch.autograd.grad(
        [values[:fits] for values in outputs], args, [c[:fits] for c in cotangents]
    )
    padded = [torch.nn.functional.pad(c, (0, capacity), value=3.0)[:capacity] for c in cotangents]
    with_padding = torch.autograd.grad([codes.values for codes in got], args, padded)
    for name, limited, full in zip(NAMES, with_padding, grads, strict=True):
        torch.testing.assert_close(limited, full, msg=name)


@each_backend
def test_chunks_do_not_change_the_result(backend, monkeypatch):
    args = [t.to(device(backend)) for t in gated_problem(11, 9, 40)]
    whole = encode_gated(*args, backend=backend)
    set_chunk_rows(4, 40, torch.float64, backend, monkeypatch)
    for limited, full in zip(encode_gated(*args, backend=backend), whole, strict=True):
        for name in ("values", "indices", "offsets"):
            assert torch.equal(getattr(limited, name), getattr(full, name)), name


@each_backend
def test_autocast_changes_nothing(backend, monkeypatch):
    monkeypatch.setattr("sae_kernels.matmul._has_onednn", lambda: False)  # it ignores autocast
    args = [t.to(device(backend), torch.float32) / 3 for t in gated_problem(6, 50, 70)]
    want = dense(encode_gated(*args, backend=backend))
    with torch.autocast(device(backend), dtype=torch.bfloat16):
        got = dense(encode_gated(*args, backend=backend))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@each_backend
def test_gradient_of_W_enc_in_parts_equals_the_dense_one(backend):
    args = leaves(*gated_problem(9, 6, 30), dtype=torch.float64, device=device(backend))
    want = gradients(dense(encode_gated(*args, backend=backend)), args)[1]
    args[1].row_grads = RowGrads()
    acts = dense(encode_gated(*args, backend=backend))
    cotangents = [normal(*a.shape, seed=7 + i).to(a.device) for i, a in enumerate(acts)]
    torch.autograd.backward(acts, cotangents)
    assert args[1].grad is None
    got = reference.dense_gradient(args[1].t().shape, None, args[1].row_grads).t()
    torch.testing.assert_close(got, want)


@each_backend
def test_two_runs_give_the_same_bits(backend):
    runs = []
    for _ in range(2):
        args = leaves(*gated_problem(7, 20, 37), dtype=torch.float32, device=device(backend))
        codes, gates = encode_gated(*args, backend=backend)
        values = [codes.values, gates.values]
        runs.append([*values, codes.indices, *torch.autograd.grad(values, args, values)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 40),
    d_in=st.integers(1, 9),
    d_sae=st.integers(1, 70),
    shift=st.integers(-9, 9),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_density(batch, d_in, d_sae, shift, seed):
    args = [normal(batch, d_in, seed=seed), normal(d_sae, d_in, seed=seed + 1).t()]
    args += [normal(d_sae, seed=seed + 2) + shift, *normal(2, d_sae, seed=seed + 3)]
    for got, want in zip(
        *(
            dense(encode_gated(*args, backend=implementation))
            for implementation in ("torch", "reference")
        ),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_second_derivatives_raise():
    args = leaves(*gated_problem(4, 5, 30), dtype=torch.float64)
    codes, _ = encode_gated(*args)
    first = torch.autograd.grad(codes.values.square().sum(), args[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_negative_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity=-1 must not be negative"):
        encode_gated(*gated_problem(2, 4, 30), capacity=-1)
