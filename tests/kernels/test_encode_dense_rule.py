from __future__ import annotations

import pytest
import torch
from test_encode_topk import NAMES, problem
from torch import Tensor

from encoder_cases import TRITON_ONLY, forbid_sync, set_chunk_rows
from kernel_cases import (
    active_sets,
    assert_as_accurate,
    device,
    each_backend,
    each_dtype,
    each_shape,
    leaves,
    normal,
    tokens_first,
)
from sae_kernels import reference
from sae_kernels.encode_dense_rule import encode_dense_rule, largest
from sae_kernels.encode_topk import encode_topk
from sae_kernels.row_grads import RowGrads


def abs_topk(k: int, floor: float = 0.0):
    """Return a rule: the k largest |pre| with their signs, and 0 where |pre| is at most `floor`."""

    def select(pre: Tensor) -> tuple[Tensor, Tensor]:
        indices = pre.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        values = pre.gather(1, indices)
        return torch.where(values.abs() <= floor, 0, values), indices

    return select


def on_support(inputs: list[Tensor], indices: Tensor, floor: float = 0.0) -> Tensor:
    """Return plain PyTorch's values on a given support, which autograd can differentiate."""
    x, W_enc, b_enc, b_dec = inputs
    values = ((x - b_dec) @ W_enc + b_enc).gather(1, indices)
    return torch.where(values.abs() > floor, values, 0)


@each_backend
@each_dtype
@each_shape
def test_values_and_gradients_of_every_input(backend, dtype, shape):
    inputs, k = problem(shape), shape[3]
    cotangent = normal(shape[0], shape[2], seed=9)
    support = reference.encode_dense_rule(*inputs[:3], abs_topk(k), inputs[3])
    assert shape[0] == 1 or (support.values < 0).any() and (support.values > 0).any()

    fast_in = leaves(*inputs, dtype=dtype, device=device(backend))
    fast = encode_dense_rule(*fast_in[:3], abs_topk(k), fast_in[3], backend=backend)
    assert fast.values.dtype == dtype and fast.indices.dtype == torch.int64
    assert fast.values.shape == fast.indices.shape == (shape[0], k)
    if dtype != torch.bfloat16 or backend != "triton":  # triton rounds the product first
        assert active_sets(fast) == active_sets(support)

    indices = fast.indices.cpu()
    weights = cotangent.gather(1, indices)
    results = []
    for kind in (torch.float64, dtype):
        args = leaves(*inputs, dtype=kind)
        values = on_support(args, indices)
        results.append([values, *torch.autograd.grad((values * weights.to(kind)).sum(), args)])
    truth, plain = results
    plain[-1] = [plain[-1], tokens_first(inputs[1], truth[3], dtype)]
    weights = weights.to(fast.values.device, dtype)
    grads = torch.autograd.grad((fast.values * weights).sum(), fast_in)
    for name, got, plain_value, true_value in zip(
        ["values", *NAMES], [fast.values, *grads], plain, truth, strict=True
    ):
        assert_as_accurate(got, plain_value, true_value, name)
    assert grads[1].t().is_contiguous(), "W_enc's gradient must be latent-major"


@each_backend
def test_equals_the_reference_and_empty_slots_get_no_gradient(backend):
    inputs = problem((9, 8, 60, 12))
    results = []
    for implementation in (backend, "reference"):
        args = leaves(*inputs, dtype=torch.float64, device=device(implementation))
        codes = encode_dense_rule(
            *args[:3], abs_topk(12, floor=5.0), args[3], backend=implementation
        )
        cotangent = normal(9, 60, seed=4).to(codes.values.device).gather(1, codes.indices)
        loss = (codes.values * cotangent).sum() + codes.values.pow(2).sum()
        results.append([codes.to_dense(), *torch.autograd.grad(loss, args)])
        ones = torch.ones_like(codes.values)
        again = encode_dense_rule(
            *args[:3], abs_topk(12, floor=5.0), args[3], backend=implementation
        )
        (d_b_enc,) = torch.autograd.grad(again.values, args[2], ones)
        assert (codes.values == 0).any() and (codes.values < 0).any()
        assert d_b_enc.tolist() == (codes.to_dense() != 0).sum(0).tolist()
    for name, got, want in zip(["codes", *NAMES], *results, strict=True):
        assert_as_accurate(got, want, want.cpu(), name)


@each_backend
def test_gradient_in_parts_equals_the_dense_one(backend):
    inputs = problem((7, 6, 40, 5))
    grads = []
    for in_parts in (False, True):
        args = leaves(*inputs, dtype=torch.float64, device=device(backend))
        if in_parts:
            args[1].row_grads = RowGrads()
        for seed in (5, 6):  # two backward passes add up
            codes = encode_dense_rule(
                args[0] * seed, *args[1:3], abs_topk(5), args[3], backend=backend
            )
            assert (codes.values < 0).any()
            codes.values.square().sum().backward()
        grads.append([t.grad for t in args])
        if in_parts:
            assert args[1].grad is None
            grads[1][1] = reference.dense_gradient(args[1].t().shape, None, args[1].row_grads).t()
    for name, want, got in zip(NAMES, *grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=name)


@each_backend
def test_chunks_are_bounded_and_do_not_change_the_result(backend, monkeypatch):
    inputs = [t.to(device(backend), torch.float64) for t in problem((11, 9, 40, 3))]
    one_chunk = encode_dense_rule(*inputs[:3], abs_topk(3), inputs[3], backend=backend)
    set_chunk_rows(4, 40, torch.float64, backend, monkeypatch)
    seen, select = [], abs_topk(3)

    def spy(pre: Tensor) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        seen.append(len(pre))
        return select(pre)

    chunked = encode_dense_rule(*inputs[:3], spy, inputs[3], backend=backend)
    assert seen == [4, 4, 3]
    assert active_sets(chunked) == active_sets(one_chunk)
    torch.testing.assert_close(chunked.to_dense(), one_chunk.to_dense())


@each_backend
def test_two_runs_give_the_same_bits(backend):
    runs = []
    for _ in range(2):
        args = leaves(*problem((7, 50, 77, 13)), dtype=torch.float32, device=device(backend))
        codes = encode_dense_rule(*args[:3], abs_topk(13), args[3], backend=backend)
        runs.append(
            [codes.values, codes.indices, *torch.autograd.grad(codes.values.square().sum(), args)]
        )
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@each_backend
def test_empty_batch(backend):
    args = leaves(*problem((0, 4, 30, 3)), dtype=torch.float32, device=device(backend))
    codes = encode_dense_rule(*args[:3], abs_topk(3), args[3], backend=backend)
    assert codes.values.shape == codes.indices.shape == (0, 3)
    assert all((g == 0).all() for g in torch.autograd.grad(codes.values.sum(), args))


@each_backend
def test_autocast_changes_nothing(backend, monkeypatch):
    monkeypatch.setattr("sae_kernels.matmul._has_onednn", lambda: False)  # it ignores autocast
    inputs = [t.to(device(backend), torch.float32) for t in problem((6, 50, 70, 5))]
    want = encode_dense_rule(*inputs[:3], abs_topk(5), inputs[3], backend=backend)
    with torch.autocast(device(backend), dtype=torch.bfloat16):
        got = encode_dense_rule(*inputs[:3], abs_topk(5), inputs[3], backend=backend)
    assert torch.equal(got.to_dense(), want.to_dense())


@pytest.mark.parametrize(
    "select",
    [
        lambda pre: (pre[:, :2], pre[:, :3].long()),
        lambda pre: (pre[:1], pre[:1].long()),
        lambda pre: (pre[:, 0], pre[:, 0].long()),
    ],
    ids=["two-widths", "rows", "one-dimension"],
)
def test_a_rule_that_returns_wrong_shapes_is_refused(select):
    x, W_enc, b_enc, _ = problem((4, 5, 30, 3))
    with pytest.raises(ValueError, match=r"for 4 rows.*both must be \[rows, k\]"):
        encode_dense_rule(x, W_enc, b_enc, select)


@each_backend
@pytest.mark.parametrize("rule", ["encode_topk", "encode_dense_rule"])
def test_nan_is_selected_and_gets_no_gradient(backend, rule):
    inputs = problem((6, 5, 60, 3))
    inputs[2][7] = float("nan")
    inputs[2][8:] -= 12
    x, W_enc, b_enc, b_dec = leaves(*inputs, dtype=torch.float64, device=device(backend))
    if rule == "encode_topk":  # its mask is the same, of values that are not negative
        codes = encode_topk(x, W_enc, b_enc, 12, b_dec, backend=backend)
    else:
        codes = encode_dense_rule(x, W_enc, b_enc, abs_topk(40, 9.0), b_dec, backend=backend)
    values, indices = codes.values.detach().cpu(), codes.indices.cpu()
    assert values.isnan().sum() == 6 and (indices[values.isnan()] == 7).all()
    fires = (values > 0) | (values < 0)
    assert fires.any() and (values == 0).any()
    ones = torch.ones_like(codes.values)
    grad = torch.autograd.grad(codes.values, b_enc, ones)[0].cpu()
    assert grad.tolist() == torch.bincount(indices[fires], minlength=60).tolist()


@each_backend
@pytest.mark.parametrize("k", [1, 5, 64, 300])
def test_largest_breaks_ties_from_the_left(backend, k, monkeypatch):
    if backend == "triton":
        monkeypatch.setattr("sae_kernels.gpu.encode_topk._BLOCK", 128)  # several blocks a row
    generator = torch.Generator().manual_seed(k)
    scores = torch.randint(0, 5, (9, 300), generator=generator).double()
    scores[3] = 2.0
    scores[4, 17] = float("nan")
    got = largest(scores.to(device(backend)), k, backend=backend).cpu()
    want = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert got.dtype == torch.int64 and got.shape == (9, k)
    for row, got_value, true_value in zip(scores, got.tolist(), want.tolist(), strict=True):
        assert len(set(got_value)) == k
        positive = lambda some, row=row: {i for i in some if not row[i] <= 0}
        assert positive(got_value) == positive(true_value)
    assert torch.equal(largest(scores, k, backend="reference"), want)


@TRITON_ONLY
def test_nothing_waits_for_the_device(backend):
    def select(pre: Tensor) -> tuple[Tensor, Tensor]:
        indices = largest(pre.abs(), 5, backend=backend)
        return pre.gather(1, indices), indices

    args = leaves(*problem((5, 4, 300, 5)), dtype=torch.float32, device=device(backend))
    encode_dense_rule(*args[:3], select, args[3], backend=backend)  # kernels are compiled
    with forbid_sync():
        codes = encode_dense_rule(*args[:3], select, args[3], backend=backend)
        torch.autograd.grad(codes.values.square().sum(), args)
