"""Tests that the Triton encoder's selection is exact for its rounded pre-activations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel_cases import (
    CUDA,
    TRITON,
    assert_as_accurate,
    device,
    given,
    normal,
    settings,
    slow_in_interpreter,
    st,
)

if not TRITON:
    pytest.skip("needs a GPU, or the interpreter", allow_module_level=True)

from sae_kernels.gpu import encode_topk as select
from sae_kernels.gpu import pre_acts as product
from sae_kernels.gpu.encoder_matmul import encode

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALVES = DTYPES[2:]
DEVICE = device("triton")
NAN, INF = float("nan"), float("inf")
each_dtype = pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.bfloat16, *map(slow_in_interpreter, (torch.float32, torch.float16))],
    ids=lambda d: str(d).removeprefix("torch."),
)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=lambda d: str(d).removeprefix("torch."))


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    pre = pre.to(DEVICE)
    values, indices = pre.new_empty(len(pre), k), torch.empty(len(pre), k, dtype=torch.int64)
    indices = indices.to(DEVICE)
    grouped = k < -(-pre.shape[1] // select.GROUP)
    select.top_k(pre, select.group_maxima(pre) if grouped else None, k, values, indices)
    return values.cpu(), indices.cpu()


def assert_exact(values: Tensor, indices: Tensor, pre: Tensor, k: int) -> None:
    """Assert the set and bits of a stable descending sort, in the order of the columns."""
    acts = torch.where(pre <= 0, 0, pre)  # NaN stays
    order = acts.sort(dim=1, descending=True, stable=True).indices[:, :k]
    want = order.sort(1).values
    assert torch.equal(indices, want)
    torch.testing.assert_close(values, acts.gather(1, want), rtol=0, atol=0, equal_nan=True)
    assert not values.nan_to_num().signbit().any()


def small_integers(rows: int, d_sae: int, seed: int, low: int = -1, high: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, (rows, d_sae), generator=generator).double()


# 416 columns are 13 groups; 400 end in half a group; 5 are less than one.
@each_dtype
@pytest.mark.parametrize(
    ("d_sae", "k"), [(416, 1), (416, 12), (416, 13), (400, 5), (400, 12), (400, 400), (5, 2)]
)
def test_selection_of_normal_numbers_and_ties_is_exact(dtype, d_sae, k):
    for pre in (normal(2, d_sae, seed=k, dtype=dtype), small_integers(2, d_sae, k).to(dtype)):
        assert_exact(*top_k(pre, k), pre, k)


ALL = torch.arange(416, dtype=torch.float64)
ADVERSARIES = {
    "all-equal": ALL * 0 + 2,
    "all-negative": -1 - ALL,
    "zeros": ALL * 0,
    "negative-zeros": ALL * -0.0,
    "winners-in-the-last-group": torch.where(ALL >= 384, ALL, 1),
    "winners-in-the-first-group": torch.where(ALL < 32, 40 - ALL, -ALL),
    "one-winner-a-group": torch.where(ALL % 32 == 31, 5, 4.0),
    "fewer-positives-than-k": torch.where(ALL % 150 == 149, ALL, -1),
    "ties-across-groups": torch.where(ALL % 40 > 37, 3, ALL % 3),
    "a-tie-right-of-a-leader": torch.where(ALL == 33, 9, torch.where(ALL > 60, 8, 0.0)),
    "infinities": torch.where(ALL % 100 == 99, INF, torch.where(ALL % 7 == 0, -INF, 1)),
    "nan": torch.where(ALL % 100 == 98, NAN, torch.where(ALL % 50 == 3, INF, 2)),
    "nan-with-a-sign": torch.where(ALL % 100 == 98, -torch.tensor(NAN).double(), 1),
    "all-nan": ALL * NAN,
}


@each_dtype
def test_selection_in_adversarial_rows_is_exact(dtype):
    pre = torch.stack(list(ADVERSARIES.values())).to(dtype)
    assert_exact(*top_k(pre, 6), pre, 6)


@each_dtype
def test_selection_across_several_blocks_is_exact(dtype, monkeypatch):
    """Columns, maxima (80) and candidates (30 x 32) span blocks, the last of each partial."""
    monkeypatch.setattr(select, "_BLOCK", 64)
    pre = small_integers(1, 2535, seed=3, low=-50, high=60).to(dtype)
    assert_exact(*top_k(pre, 30), pre, 30)
    assert_exact(*top_k(pre[:, :200].contiguous(), 150), pre[:, :200], 150)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    d_sae=st.integers(1, 500),
    share=st.floats(0, 1),
    distinct=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_any_shape(d_sae, share, distinct, dtype, seed):
    k = 1 + round(share * share * (d_sae - 1))
    pre = small_integers(1, d_sae, seed, low=-1, high=distinct).to(dtype)
    assert_exact(*top_k(pre, k), pre, k)


def fused(centred: Tensor, W_rows: Tensor, b_enc: Tensor, tma: bool | None) -> list[Tensor]:
    inputs = [t.to(DEVICE) for t in (centred, W_rows, b_enc)]
    acts = torch.empty(len(centred), len(W_rows), dtype=centred.dtype, device=DEVICE)
    maxima = torch.empty(len(centred), len(W_rows) // 32, dtype=centred.dtype, device=DEVICE)
    encode(*inputs, acts, maxima, 32, tma=tma)
    return [acts.cpu(), maxima.cpu()]


# A GPU has one way to copy tiles; the interpreter can run both.
each_copy = pytest.mark.parametrize("tma", [None] if CUDA else [False, True])


@each_copy
@each_half
@pytest.mark.parametrize("shape", [(5, 24, 416), (130, 72, 288), (1, 8, 32)], ids=str)
def test_fused_product_and_its_maxima(tma, dtype, shape):
    """No tile divides these sizes."""
    batch, d_in, d_sae = shape
    inputs = normal(batch, d_in, seed=0), normal(d_sae, d_in, seed=1), normal(d_sae, seed=2)
    truth = (inputs[0] @ inputs[1].T + inputs[2]).relu()
    inputs = [t.to(dtype) for t in inputs]
    acts, maxima = fused(*inputs, tma)
    plain = (inputs[0] @ inputs[1].T + inputs[2]).relu()
    assert_as_accurate(acts, plain, truth, "acts")
    assert torch.equal(maxima, acts.unflatten(1, (-1, 32)).amax(2))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
@each_copy
@each_half
def test_fused_product_propagates_nan_and_inf(tma, dtype):
    centred, W_rows, b_enc = torch.ones(3, 8), torch.ones(96, 8), torch.zeros(96)
    centred[1, 0] = NAN
    centred[2, 0] = INF
    W_rows[5, 0] = 0  # inf * 0
    b_enc[40], b_enc[50], b_enc[70] = INF, -INF, NAN
    acts, maxima = fused(*(t.to(dtype) for t in (centred, W_rows, b_enc)), tma)
    want = torch.full((3, 96), 8.0)
    want[0, 5], want[0, 40], want[0, 50], want[0, 70] = 7, INF, 0, NAN
    want[1] = NAN
    want[2] = INF
    want[2, 5] = want[2, 50] = want[2, 70] = NAN
    torch.testing.assert_close(acts.float(), want, equal_nan=True, rtol=0, atol=0)
    assert maxima.isnan().tolist() == [[False, False, True], [True] * 3, [True] * 3]
    assert maxima[0, :2].tolist() == [8, INF]


@each_half
@pytest.mark.parametrize("implementation", ["fused", "vendor", None])
def test_forward_of_integers_equals_a_stable_sort(dtype, implementation, monkeypatch):
    """Integers below 256 are exact in bf16 and fp16, and many tie. The last chunk is partial."""
    monkeypatch.setattr(product, "CHUNK_BYTES", 1)
    monkeypatch.setattr(product, "CHUNK_MIN_ROWS", 3)
    inputs = small_integers(5, 16, 0), small_integers(416, 16, 1), small_integers(1, 416, 2)[0]
    on_device = [t.to(DEVICE, dtype) for t in inputs]
    runs = [select.forward(*on_device, 7, product=implementation) for _ in range(2)]
    pre = inputs[0] @ inputs[1].T + inputs[2]
    assert pre.abs().max() < 256
    assert_exact(*(t.cpu() for t in runs[0]), pre.to(dtype), 7)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("d_in", "d_sae", "k", "dtype"),
    [
        (12, 64, 1, torch.bfloat16),
        (16, 80, 1, torch.bfloat16),
        (16, 64, 2, torch.bfloat16),
        (16, 64, 1, torch.float32),
    ],
    ids=["d_in", "d_sae", "k", "dtype"],
)
def test_inputs_the_fused_product_cannot_take_use_the_vendor_product(d_in, d_sae, k, dtype):
    inputs = small_integers(3, d_in, 0), small_integers(d_sae, d_in, 1), small_integers(1, d_sae, 2)
    on_device = [t.to(DEVICE, dtype) for t in (*inputs[:2], inputs[2][0])]
    with pytest.raises(ValueError, match="product='fused' cannot take these inputs"):
        select.forward(*on_device, k, product="fused")
    pre = (inputs[0] @ inputs[1].T + inputs[2]).to(dtype)
    assert_exact(*(t.cpu() for t in select.forward(*on_device, k)), pre, k)


def test_unaligned_inputs_use_the_vendor_product():
    """The input starts two bytes into a buffer, which no tensor descriptor accepts."""
    x = small_integers(1, 65, 0).to(DEVICE, torch.bfloat16)[0, 1:].view(4, 16)
    W_rows = small_integers(64, 16, 1).to(DEVICE, torch.bfloat16)
    b_enc = torch.zeros(64, device=DEVICE, dtype=torch.bfloat16)
    values, indices = select.forward(x, W_rows, b_enc, 1)
    pre = (x.double() @ W_rows.double().T).bfloat16().cpu()
    assert_exact(values.cpu(), indices.cpu(), pre, 1)


def test_pre_acts_chunks_share_one_buffer(monkeypatch):
    monkeypatch.setattr(product, "CHUNK_BYTES", 4 * 50 * 8)
    inputs = normal(10, 6, seed=0), normal(50, 6, seed=1), normal(50, seed=2)
    inputs = [t.to(DEVICE, torch.float32) for t in inputs]
    all_pre_acts = torch.addmm(inputs[2], inputs[0], inputs[1].T)
    seen, where = [], set()
    for rows, pre in product.pre_acts_chunks(*inputs):
        torch.testing.assert_close(pre, all_pre_acts[rows])
        assert (pre < 0).any() and pre.dtype == torch.float32 and pre.is_contiguous()
        seen += range(10)[rows]
        where.add(pre.data_ptr())
    assert seen == list(range(10)) and len(where) == 1


@pytest.mark.parametrize(
    ("d_sae", "dtype", "rows"),
    [
        (24576, torch.bfloat16, 2048),  # of the 2730 that fit: 8192 in four equal chunks
        (65536, torch.bfloat16, 1024),
        (131072, torch.bfloat16, 512),
        (2**20, torch.bfloat16, 256),  # 0.5 GB
        (131072, torch.float32, 256),
        (2**20, torch.float64, 16),
        (512, torch.float32, 8192),
    ],
)
def test_chunk_rows_bound_the_memory(d_sae, dtype, rows):
    assert product.chunk_rows(8192, d_sae, dtype) == rows
    assert product.chunk_rows(0, d_sae, dtype) == product.chunk_rows(1, d_sae, dtype) == 1
    if d_sae < 2**20:
        assert rows * d_sae * dtype.itemsize <= product.CHUNK_BYTES


def test_choose_product_follows_its_cost_model():
    assert product.choose_product(768, 24576, torch.bfloat16) == "fused"
    assert product.choose_product(4096, 131072, torch.bfloat16) == "vendor"
    assert product.choose_product(768, 24576, torch.float32) == "vendor"
