from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from kernel_cases import (
    active_sets,
    assert_as_accurate,
    device,
    each_backend,
    each_dtype,
    each_shape,
    leaves,
    mark_slow_in_interpreter,
    normal,
    slow_in_interpreter,
    tokens_first,
)
from sae_kernels import reference
from sae_kernels.encode_topk import encode_topk

NAMES = ["x", "W_enc", "b_enc", "b_dec"]


def problem(shape: tuple[int, int, int, int], seed: int = 0) -> list[Tensor]:
    batch, d_in, d_sae, _ = shape
    eighths = lambda *size, seed: (normal(*size, seed=seed) * 8).round().clamp(-60, 60) / 8
    return [
        eighths(
            batch, d_in, seed=seed
        ),  # x - b_dec is exact in bf16, so every dtype gets the same problem
        normal(d_sae, d_in, seed=seed + 1).t(),
        normal(d_sae, seed=seed + 2),
        eighths(d_in, seed=seed + 3),
    ]


def on_support(inputs: list[Tensor], indices: Tensor) -> Tensor:
    """Return plain PyTorch's values on a given support, which autograd can differentiate."""
    x, W_enc, b_enc, b_dec = inputs
    return ((x - b_dec) @ W_enc + b_enc).gather(1, indices).relu()


@each_backend
@each_dtype
@each_shape
def test_values_and_gradients_of_every_input(backend, dtype, shape):
    inputs, k = problem(shape), shape[3]
    cotangent = normal(shape[0], shape[2], seed=9)
    support = reference.encode_topk(*inputs[:3], k, inputs[3])

    fast_in = leaves(*inputs, dtype=dtype, device=device(backend))
    fast = encode_topk(*fast_in[:3], k, fast_in[3], backend=backend)
    assert fast.values.dtype == dtype and fast.indices.dtype == torch.int64
    assert fast.values.shape == fast.indices.shape == (shape[0], k)
    if dtype == torch.bfloat16 and backend == "triton":
        # It selects from rounded values: those within two roundings of the k-th may swap.
        acts = on_support(inputs, torch.arange(shape[2]).expand(shape[0], -1))
        kth = acts.topk(k, dim=1).values[:, -1:]
        assert (acts.gather(1, fast.indices.cpu()) >= kth * (1 - 2**-6)).all()
    else:
        assert active_sets(fast) == active_sets(support)
    assert all(len(set(row)) == k for row in fast.indices.tolist()), (
        "a row has the same index twice"
    )

    indices = fast.indices.cpu()
    weights = cotangent.gather(1, indices)
    results = []
    for kind in (torch.float64, dtype):
        at = leaves(*inputs, dtype=kind)
        values = on_support(at, indices)
        results.append([values, *torch.autograd.grad((values * weights.to(kind)).sum(), at)])
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
@pytest.mark.parametrize("k", [slow_in_interpreter(1), 5, *map(slow_in_interpreter, (64, 300))])
def test_ties_go_to_the_lowest_index(backend, k, monkeypatch):
    """Small integers are exact in every order of summation, and many tie at the k-th place."""
    if backend == "triton":
        monkeypatch.setattr("sae_kernels.gpu.encode_topk._BLOCK", 128)  # several blocks a row
    generator = torch.Generator().manual_seed(k)
    x = torch.randint(-1, 2, (37 if backend == "torch" else 8, 3), generator=generator).float()
    W_enc = torch.randint(-1, 2, (300, 3), generator=generator).float().t()
    b_enc = torch.randint(0, 2, (300,), generator=generator).float()
    x[5] = x[4]  # duplicated rows
    W_enc[:, 200:250] = W_enc[:, 100:150]  # duplicated latents
    want = reference.encode_topk(x, W_enc, b_enc, k)
    dev = device(backend)
    got = encode_topk(x.to(dev), W_enc.to(dev), b_enc.to(dev), k, backend=backend)
    assert active_sets(got) == active_sets(want)
    assert torch.equal(got.to_dense().cpu(), want.to_dense())


@each_backend
def test_equal_values_select_the_lowest_indices(backend):
    x, W_enc = torch.ones(3, 2), torch.ones(700, 2).t()
    dev = device(backend)
    codes = encode_topk(x.to(dev), W_enc.to(dev), torch.zeros(700, device=dev), 9, backend=backend)
    assert codes.indices.sort(1).values.tolist() == [list(range(9))] * 3
    assert (codes.values == 2).all()


@each_backend
def test_fewer_positives_than_k_leave_empty_slots_without_gradient(backend):
    x, W_enc, b_enc, b_dec = problem((12, 8, 130, 40))
    b_enc -= 8
    x[3] = b_dec  # its pre-activations are b_enc; some rows have only negative ones
    at = leaves(x, W_enc, b_enc, b_dec, dtype=torch.float64, device=device(backend))
    codes = encode_topk(*at[:3], 40, at[3], backend=backend)
    want = reference.encode_topk(x, W_enc, b_enc, 40, b_dec)
    l0 = want.l0()
    assert (l0 == 0).any() and (l0 < 40).all() and (l0 > 0).any()
    assert active_sets(codes) == active_sets(want)
    assert ((codes.indices >= 0) & (codes.indices < 130)).all()
    assert all(len(set(row)) == 40 for row in codes.indices.tolist())
    cotangent = torch.ones_like(codes.values)
    d_b_enc = torch.autograd.grad(codes.values, at[2], cotangent)[0].cpu()
    assert d_b_enc.tolist() == (want.to_dense() > 0).sum(0).tolist()


@each_backend
def test_nan_and_inf(backend):
    """NaN is always selected, and inf is the largest number."""
    x, W_enc, b_enc, b_dec = leaves(
        *problem((6, 5, 600, 3)), dtype=torch.float32, device=device(backend)
    )
    with torch.no_grad():
        x[1, 2] = float("nan")
        b_enc[77], b_enc[78], b_enc[79] = float("inf"), float("-inf"), float("nan")
    codes = encode_topk(x, W_enc, b_enc, 3, b_dec, backend=backend)
    assert codes.values[1].isnan().all()
    for row in (0, 2, 3, 4, 5):
        value_of = dict(zip(codes.indices[row].tolist(), codes.values[row].tolist(), strict=True))
        assert value_of[77] == float("inf") and value_of[79] != value_of[79] and 78 not in value_of


@each_backend
def test_nan_takes_one_slot_beside_ties(backend):
    """A NaN takes one slot and does not change how ties among the others are broken."""
    dev = device(backend)
    b_enc = torch.ones(100, device=dev)
    b_enc[60] = float("nan")
    x, W_enc = torch.zeros(2, 3, device=dev), torch.zeros(100, 3, device=dev).t()
    codes = encode_topk(x, W_enc, b_enc, 5, backend=backend)
    assert codes.indices.sort(1).values.tolist() == [[0, 1, 2, 3, 60]] * 2


@mark_slow_in_interpreter
@each_backend
def test_autocast_changes_nothing(backend, monkeypatch):
    monkeypatch.setattr("sae_kernels.matmul._has_onednn", lambda: False)  # it ignores autocast
    inputs = [t.to(device(backend), torch.float32) for t in problem((6, 50, 70, 5))]
    want = encode_topk(*inputs[:3], 5, inputs[3], backend=backend)
    with torch.autocast(device(backend), dtype=torch.bfloat16):
        got = encode_topk(*inputs[:3], 5, inputs[3], backend=backend)
    assert torch.equal(got.to_dense(), want.to_dense())


@mark_slow_in_interpreter
@each_backend
def test_no_b_dec_and_a_W_enc_that_is_not_latent_major(backend):
    x, W_enc, b_enc, _ = problem((9, 20, 101, 7))
    grads = []
    for implementation, W in ((backend, W_enc.contiguous()), ("reference", W_enc)):
        dev = device(implementation)
        at = leaves(x, W, b_enc, dtype=torch.float64, device=dev)
        codes = encode_topk(*at, 7, backend=implementation)
        cotangent = normal(9, 101, seed=4).to(dev).gather(1, codes.indices)
        grads.append(torch.autograd.grad((codes.values * cotangent).sum(), at))
    for name, got, want in zip(NAMES[:3], *grads, strict=True):
        assert_as_accurate(got, want.detach(), want, name)


@mark_slow_in_interpreter
@each_backend
def test_chunks_do_not_change_the_result(backend, monkeypatch):
    inputs = [t.to(device(backend), torch.float64) for t in problem((11, 9, 40, 3))]
    one_chunk = encode_topk(*inputs[:3], 3, inputs[3], backend=backend)
    if backend == "torch":
        monkeypatch.setattr("sae_kernels.cpu.pre_acts.CHUNK_ELEMENTS", 1)
        monkeypatch.setattr("sae_kernels.cpu.pre_acts.CHUNK_MIN_ROWS", 4)
    else:
        monkeypatch.setattr("sae_kernels.gpu.pre_acts.CHUNK_BYTES", 4 * 40 * 8)  # 4 rows
    chunked = encode_topk(*inputs[:3], 3, inputs[3], backend=backend)
    assert active_sets(chunked) == active_sets(one_chunk)
    torch.testing.assert_close(chunked.to_dense(), one_chunk.to_dense())


@mark_slow_in_interpreter
@each_backend
def test_two_runs_give_the_same_bits(backend):
    inputs = problem((7, 50, 77, 13))
    runs = []
    for _ in range(2):
        at = leaves(*inputs, dtype=torch.float32, device=device(backend))
        codes = encode_topk(*at[:3], 13, at[3], backend=backend)
        runs.append(
            [codes.values, codes.indices, *torch.autograd.grad(codes.values.square().sum(), at)]
        )
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@each_backend
def test_empty_batch(backend):
    at = leaves(*problem((0, 4, 30, 3)), dtype=torch.float32, device=device(backend))
    codes = encode_topk(*at[:3], 3, at[3], backend=backend)
    assert codes.values.shape == codes.indices.shape == (0, 3)
    grads = torch.autograd.grad(codes.values.sum(), at)
    assert all((g == 0).all() for g in grads)


def test_two_threads_give_the_results_of_one():
    inputs = [[t.float() for t in problem((200, 16, 900, 8), seed=s)] for s in (10, 20)]
    want = [encode_topk(*i[:3], 8, i[3]).to_dense() for i in inputs]
    mismatches = []

    def work(implementation: int) -> None:
        for _ in range(10):
            x, W_enc, b_enc, b_dec = inputs[implementation]
            if not torch.equal(
                encode_topk(x, W_enc, b_enc, 8, b_dec).to_dense(), want[implementation]
            ):
                mismatches.append(implementation)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mismatches


def test_second_derivatives_raise():
    at = leaves(*problem((4, 5, 30, 3)), dtype=torch.float64)
    codes = encode_topk(*at[:3], 3, at[3])
    first = torch.autograd.grad(codes.values.square().sum(), at[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("k", [0, 31])
def test_k_out_of_range_is_refused(k):
    x, W_enc, b_enc, _ = problem((2, 4, 30, 3))
    with pytest.raises(ValueError, match=f"k={k} must lie between 1 and d_sae=30"):
        encode_topk(x, W_enc, b_enc, k)
