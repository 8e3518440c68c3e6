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
    problem,
    set_chunk_rows,
)
from kernel_cases import (
    DTYPES,
    assert_as_accurate,
    device,
    each_backend,
    each_shape,
    given,
    leaves,
    normal,
    settings,
    slow_in_interpreter,
    st,
    tokens_first,
)
from sae_kernels import reference
from sae_kernels.codes import Codes
from sae_kernels.cpu import encode_batch_topk as cpu_encode_batch_topk
from sae_kernels.encode_batch_topk import encode_batch_topk
from sae_kernels.encode_threshold import encode_threshold
from sae_kernels.row_grads import RowGrads

NAMES = ["x", "W_enc", "b_enc", "b_dec"]


def codes_of_pre_acts(pre: Tensor, k: int, backend: str, rows: int, monkeypatch) -> Codes:
    """Return the codes of given pre-activations, which arrive in chunks of `rows` rows."""
    batch, d_sae = pre.shape

    def chunks(centred, *_):
        for start in range(0, batch, rows):
            chunk = slice(start, min(start + rows, batch))
            yield chunk, pre[chunk].to(centred.device)

    owner = "sae_kernels." + (
        "cpu.encode_batch_topk" if backend == "torch" else "gpu.encode_batch_topk"
    )
    monkeypatch.setattr(f"{owner}.pre_acts_chunks", chunks)
    monkeypatch.setattr(f"{owner}.choose_product", lambda *_: "vendor", raising=backend == "triton")
    x, W_enc, b_enc = torch.zeros(batch, 1), torch.zeros(1, d_sae), torch.zeros(d_sae)
    args = [t.to(device(backend), pre.dtype) for t in (x, W_enc, b_enc)]
    return encode_batch_topk(*args, k, backend=backend)


def expected_slots(pre: Tensor, k: int) -> list[tuple[int, int]]:
    """Return the (row, column) of the slots that a stable sort would select, in that order."""
    values = pre.tolist()
    first = lambda args: (
        values[args[0]][args[1]] == values[args[0]][args[1]],
        -values[args[0]][args[1]],
        args,
    )
    positions = [(b, j) for b in range(pre.shape[0]) for j in range(pre.shape[1])]
    best = sorted(positions, key=first)[: k * len(pre)]
    return sorted(args for args in best if not pre[args] <= 0)


def assert_slots(codes: Codes, pre: Tensor, k: int) -> None:
    assert len(codes.values) == k * len(pre)
    assert_well_formed(codes, pre.dtype)
    rows = codes.by_latent().token_of_slot.tolist()
    used = int(codes.offsets[-1])
    slots = list(zip(rows, codes.indices.tolist(), strict=True))[:used]
    assert slots == expected_slots(pre, k), "other slots, or not in the order of (row, column)"
    want = torch.tensor([pre[args] for args in slots], dtype=pre.dtype)
    torch.testing.assert_close(codes.values[:used].cpu(), want, rtol=0, atol=0, equal_nan=True)


@each_backend
@each_dtype
@each_shape
def test_values_and_gradients_of_every_input(backend, dtype, shape):
    """Small integers are exact in every dtype, and many tie at the cut."""
    inputs, k = problem(*shape[:3]), shape[3]
    results = []
    for implementation, as_dtype in (
        (backend, dtype),
        ("reference", dtype),
        ("reference", torch.float64),
    ):
        args = leaves(*inputs, dtype=as_dtype, device=device(implementation))
        codes = encode_batch_topk(*args[:3], k, args[3], backend=implementation)
        assert codes.values.shape == (k * shape[0],)
        assert_well_formed(codes, as_dtype)
        results.append([codes.to_dense(), *gradients([codes.to_dense()], args)])
        if implementation == backend:
            fast_codes = codes
            assert results[0][2].t().is_contiguous(), "W_enc's gradient must be latent-major"
    assert torch.equal(fast_codes.indices.cpu(), codes.indices)
    assert torch.equal(fast_codes.offsets.cpu(), codes.offsets)
    results[1][-1] = [results[1][-1], tokens_first(inputs[1], results[2][3], dtype)]
    for name, got, plain_value, true_value in zip(["values", *NAMES[:4]], *results, strict=True):
        assert_as_accurate(got, plain_value, true_value, name)


NAN, INF = float("nan"), float("inf")


def adversarial(kind: str, batch: int, d_sae: int) -> Tensor:
    pre = normal(batch, d_sae, seed=1, dtype=torch.float32)
    growth = torch.linspace(-5, 5, batch).exp()[:, None]
    if kind == "rows-grow":
        pre = pre * growth
    elif kind == "rows-shrink":
        pre = pre * growth.flip(0)
    elif kind == "all-equal":
        pre = torch.full_like(pre, 2.0)
    elif kind == "all-negative":
        pre = -pre.abs()
    elif kind == "all-zero":
        pre = torch.zeros_like(pre)
    elif kind == "few-positive":
        pre = torch.where(pre > 2, pre, -pre.abs())
    elif kind == "two-values":
        pre = torch.where(pre > 1.5, 3.0, 2.0)
    elif kind == "one-row":
        pre = -pre.abs()
        pre[-1] = torch.arange(d_sae) + 1.0
    elif kind == "one-group":  # every winner in the first 32 columns
        pre[:, :32] += 100
    elif kind == "nan-and-inf":
        pre[1, 3], pre[2, :4], pre[-1, 5], pre[0, 1] = NAN, INF, -NAN, -INF
    elif kind == "nan-rows":  # more of them than are kept
        pre[1::2] = NAN
    elif kind == "nan-late":
        pre[-1] = NAN
    elif kind == "nan-early":
        pre[0] = NAN
    return pre


KINDS = [
    *("rows-grow", "rows-shrink", "all-equal", "all-negative", "all-zero", "few-positive"),
    *("two-values", "one-row", "one-group", "nan-and-inf", "nan-rows", "nan-late", "nan-early"),
]


@each_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, slow_in_interpreter(20)])
def test_selection_is_exact_for_adversarial_rows(backend, kind, k, monkeypatch):
    """There are several chunks. With k = 1 some groups of columns are skipped, with 20 none."""
    batch, rows, dtype = (23, 3, torch.float32) if backend == "torch" else (5, 2, torch.bfloat16)
    if backend == "triton":  # several programs for each list, of several blocks
        monkeypatch.setattr("sae_kernels.gpu.encode_batch_topk._BLOCK", 64 if k == 1 else 128)
        monkeypatch.setattr("sae_kernels.gpu.encode_batch_topk._BLOCKS", 2)
    pre = adversarial(kind, batch, 99).to(dtype)
    assert_slots(codes_of_pre_acts(pre, k, backend, rows, monkeypatch), pre, k)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_selection_is_exact_to_the_last_bit_in_every_dtype(backend, dtype, monkeypatch):
    """Values may differ only in the last bit of their pattern, or in the first."""
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    near_one = torch.ones(120, dtype=dtype).view(integers) + torch.arange(120, dtype=integers) % 7
    pre = torch.cat([near_one.view(dtype), torch.logspace(-30, 30, 79).to(dtype), -near_one[:1]])
    pre = pre[torch.randperm(200, generator=torch.Generator().manual_seed(0))].view(4, 50)
    assert_slots(codes_of_pre_acts(pre, 30, backend, 2, monkeypatch), pre, 30)


def test_no_more_than_n_and_a_chunk_are_held(monkeypatch):
    """The rows grow, so each chunk displaces everything before it."""
    pre, k, held = adversarial("rows-grow", 40, 99), 5, []
    largest = cpu_encode_batch_topk._select_largest
    monkeypatch.setattr(
        cpu_encode_batch_topk, "_select_largest", lambda v, n: held.append(len(v)) or largest(v, n)
    )
    assert_slots(codes_of_pre_acts(pre, k, "torch", 2, monkeypatch), pre, k)
    assert len(held) > 10 and max(held) <= k * 40 + 2 * 99


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 30),
    d_sae=st.integers(1, 130),
    share=st.floats(0, 1),
    rows=st.integers(1, 30),
    values=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_ties(batch, d_sae, share, rows, values, seed):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randint(-values, values + 1, (batch, d_sae), generator=generator).double()
    k = max(round(share * d_sae), 1)
    with pytest.MonkeyPatch.context() as patch:
        assert_slots(codes_of_pre_acts(pre, k, "torch", rows, patch), pre, k)


@TRITON_ONLY
def test_fused_and_vendor_product_select_the_same_slots(backend, monkeypatch):
    inputs = leaves(*problem(9, 8, 96), dtype=torch.bfloat16, device=device(backend))
    set_chunk_rows(4, 96, torch.bfloat16, backend, monkeypatch)
    runs = []
    for implementation in ("fused", "vendor"):
        monkeypatch.setattr(
            "sae_kernels.gpu.encode_batch_topk.choose_product", lambda *_, it=implementation: it
        )
        codes = encode_batch_topk(*inputs[:3], 1, inputs[3], backend=backend)
        runs.append([codes.values, codes.indices, codes.offsets])
    assert runs[0][0].count_nonzero() == 9
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@each_backend
def test_smallest_value_is_the_threshold_for_inference(backend):
    """Used as a threshold, the smallest value selects all slots but its own."""
    args = leaves(
        normal(7, 6, seed=1),
        normal(40, 6, seed=2).t(),
        normal(40, seed=3),
        dtype=torch.float32,
        device=device(backend),
    )
    codes = encode_batch_topk(*args, 4, backend=backend)
    least = torch.where(codes.values > 0, codes.values, torch.inf).amin()
    again = encode_threshold(*args, threshold=least.detach(), backend=backend)
    assert int(again.offsets[-1]) == 4 * 7 - 1
    nothing = encode_batch_topk(*args[:2], args[2] - 100, 4, backend=backend).values
    assert torch.where(nothing > 0, nothing, torch.inf).amin() == torch.inf


@TRITON_ONLY
def test_nothing_waits_for_the_device(backend):
    args = leaves(*problem(7, 5, 70), dtype=torch.float32, device=device(backend))
    with forbid_sync():
        codes = encode_batch_topk(*args[:3], 2, args[3], backend=backend)
        torch.where(codes.values > 0, codes.values, torch.inf).amin()
        torch.autograd.grad(codes.values.sum(), args)


@each_backend
def test_empty_batch(backend):
    args = leaves(*problem(0, 4, 30), dtype=torch.float32, device=device(backend))
    codes = encode_batch_topk(*args[:3], 3, args[3], backend=backend)
    assert codes.offsets.tolist() == [0] and codes.values.shape == (0,)
    assert all((g == 0).all() for g in torch.autograd.grad(codes.values.sum(), args))


@each_backend
def test_chunks_do_not_change_the_result(backend, monkeypatch):
    args = [t.to(device(backend)) for t in problem(11, 9, 40)]
    one_chunk = encode_batch_topk(*args[:3], 3, args[3], backend=backend)
    set_chunk_rows(4, 40, torch.float64, backend, monkeypatch)
    chunked = encode_batch_topk(*args[:3], 3, args[3], backend=backend)
    for name in ("values", "indices", "offsets"):
        assert torch.equal(getattr(chunked, name), getattr(one_chunk, name)), name


@each_backend
def test_autocast_changes_nothing(backend, monkeypatch):
    monkeypatch.setattr("sae_kernels.matmul._has_onednn", lambda: False)  # oneDNN ignores autocast
    args = [t.to(device(backend), torch.float32) / 3 for t in problem(6, 50, 70)]
    want = encode_batch_topk(*args[:3], 5, args[3], backend=backend)
    with torch.autocast(device(backend), dtype=torch.bfloat16):
        got = encode_batch_topk(*args[:3], 5, args[3], backend=backend)
    assert torch.equal(got.to_dense(), want.to_dense())


@each_backend
def test_gradient_of_W_enc_in_parts_equals_the_dense_one(backend):
    args = leaves(*problem(9, 6, 30), dtype=torch.float64, device=device(backend))
    encode = lambda: encode_batch_topk(*args[:3], 3, args[3], backend=backend).to_dense()
    want = gradients([encode()], args)[1]
    args[1].row_grads = RowGrads()
    dense = encode()
    dense.backward(normal(*dense.shape, seed=7).to(dense.device))
    assert args[1].grad is None
    got = reference.dense_gradient(args[1].t().shape, None, args[1].row_grads).t()
    torch.testing.assert_close(got, want)


@each_backend
def test_two_runs_give_the_same_bits(backend):
    runs = []
    for _ in range(2):
        args = leaves(*problem(7, 20, 70)[:3], dtype=torch.float32, device=device(backend))
        codes = encode_batch_topk(*args, 2, backend=backend)
        grads = torch.autograd.grad(codes.values, args, codes.values)
        runs.append([codes.values, codes.indices, codes.offsets, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("k", [0, 31])
def test_k_out_of_range_is_refused(k):
    x, W_enc, b_enc, _ = problem(2, 4, 30)
    with pytest.raises(ValueError, match=f"k={k} must lie between 1 and d_sae=30"):
        encode_batch_topk(x, W_enc, b_enc, k)
