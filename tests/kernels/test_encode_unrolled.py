from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel_cases import assert_as_accurate, leaves, normal
from sae_kernels.codes import Codes
from sae_kernels.encode_unrolled import encode_unrolled

NAMES = ["x", "W_enc", "b_enc", "W_dict", "b_dec", "step_1", "step_2", "theta_1", "theta_2"]
BATCH, D_IN, D_SAE = 11, 6, 40


def problem(batch: int = BATCH) -> list[Tensor]:
    vector = lambda seed: normal(D_SAE, seed=seed) / 8
    return [
        normal(batch, D_IN, seed=0),
        normal(D_SAE, D_IN, seed=1).t() / 2,
        normal(D_SAE, seed=2) - 2,
        normal(D_SAE, D_IN, seed=3) / 2,
        normal(D_IN, seed=4),
        *[vector(5).abs(), vector(6).abs(), vector(7), vector(8)],
    ]


def encoded(inputs: list[Tensor], backend: str = "auto") -> Codes:
    x, W_enc, b_enc, W_dict, b_dec, *layers = inputs
    return encode_unrolled(
        x, W_enc, b_enc, W_dict, layers[:2], layers[2:], b_dec, backend=backend
    )  # fmt: skip


def dense(inputs: list[Tensor]) -> Tensor:
    """Return z_T by the paper's formula h(W_e x + S z), with S [d_sae, d_sae] computed."""
    x, W_enc, b_enc, W_dict, b_dec, *layers = inputs
    if W_dict is None:
        W_dict = torch.stack([w / (w @ w) for w in W_enc.t()])
    pre = x @ W_enc + (b_enc if b_dec is None else b_enc - b_dec @ W_enc)
    z = pre.relu()
    for step, theta in zip(layers[:2], layers[2:], strict=True):
        S = torch.eye(D_SAE, dtype=x.dtype) - (W_dict @ W_enc) * step
        z = (pre * step + z @ S - theta).relu()
    return z


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_kernels.encode_unrolled.CHUNK_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr("sae_kernels.encode_unrolled.CHUNK_MIN_ROWS", 4)


@pytest.mark.parametrize("missing", [None, "W_dict", "b_dec"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_codes_and_gradients_of_every_input(backend, missing):
    inputs = problem()
    names = [n for n in NAMES if n != missing]
    cotangent = normal(BATCH, D_SAE, seed=9)
    results = []
    for run in (lambda args: encoded(args, backend).to_dense(), dense):
        args = leaves(*inputs, dtype=torch.float64)
        needed = [t for t, n in zip(args, NAMES, strict=True) if n != missing]
        args = [None if n == missing else t for t, n in zip(args, NAMES, strict=True)]
        z = run(args)
        results.append([z, *torch.autograd.grad((z * cotangent).sum(), needed)])
    assert 0.1 < (results[1][0] > 0).double().mean() < 0.7
    for name, got, want in zip(["codes", *names], *results, strict=True):
        assert want.abs().max() > 1e-3, name
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_narrow_dtypes_are_as_accurate_as_plain_torch(dtype):
    inputs = problem()
    cotangent = normal(BATCH, D_SAE, seed=9)
    results = []
    for kind, run in (
        (dtype, lambda args: encoded(args).to_dense()),
        (dtype, lambda args: encoded(args, "reference").to_dense()),
        (torch.float64, dense),
    ):
        args = leaves(*inputs, dtype=kind)
        z = run(args)
        results.append([z, *torch.autograd.grad((z * cotangent.to(kind)).sum(), args)])
    for name, *tensors in zip(["codes", *NAMES], *results, strict=True):
        assert_as_accurate(*tensors, name)


def test_shared_step_gets_the_gradients_of_all_layers():
    inputs = problem()
    grads = []
    for run in (lambda args: encoded(args).to_dense(), dense):
        args = leaves(*inputs, dtype=torch.float64)
        args[6], args[8] = args[5], args[7]
        z = run(args)
        grads.append([z, *torch.autograd.grad(z.square().sum(), [args[5], args[7]])])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_slots_are_the_positive_entries_in_order():
    codes = encoded(problem())
    want = dense(problem())
    assert (codes.values > 0).all()
    assert codes.l0().tolist() == (want > 0).sum(1).tolist()
    for row in range(BATCH):
        row_slots = slice(*codes.offsets[row : row + 2].tolist())
        assert codes.indices[row_slots].tolist() == want[row].nonzero().squeeze(1).tolist()


def test_only_a_chunk_of_rows_is_ever_dense(monkeypatch):
    import sae_kernels.encode_unrolled as module

    rows, last = [], module._dense_code

    def spy(x, *others):
        rows.append(len(x))
        return last(x, *others)

    monkeypatch.setattr(module, "_dense_code", spy)
    args = leaves(*problem(), dtype=torch.float64)
    loss = encoded(args).values.sum()
    assert rows == [4, 4, 3]
    loss.backward()
    assert rows == [4, 4, 3] * 2, "the backward pass computes each chunk again"


def test_two_runs_give_the_same_bits():
    runs = []
    for _ in range(2):
        args = leaves(*problem(), dtype=torch.float32)
        codes = encoded(args)
        runs.append(
            [codes.values, codes.indices, *torch.autograd.grad(codes.values.square().sum(), args)]
        )
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_empty_batch_and_no_active_latent():
    args = leaves(*problem(batch=0), dtype=torch.float64)
    codes = encoded(args)
    assert codes.batch == 0 and codes.values.shape == (0,)
    assert all((g == 0).all() for g in torch.autograd.grad(codes.values.sum(), args))
    args = leaves(*problem(), dtype=torch.float64)
    with torch.no_grad():
        args[2] -= 1000
    codes = encoded(args)
    assert codes.offsets.tolist() == [0] * (BATCH + 1)
    assert all((g == 0).all() for g in torch.autograd.grad(codes.values.sum(), args))


def test_zero_layers_equal_relu():
    x, W_enc, b_enc, W_dict, *_ = args = leaves(*problem(), dtype=torch.float64)
    codes = encode_unrolled(x, W_enc, b_enc, W_dict, [], [])
    want = (x @ W_enc + b_enc).relu()
    torch.testing.assert_close(codes.to_dense(), want)
    got = torch.autograd.grad(codes.values.sum(), args[:4])
    true_value = torch.autograd.grad(want.sum(), args[:3])
    for got_value, other in zip(got, [*true_value, torch.zeros_like(W_dict)], strict=True):
        torch.testing.assert_close(got_value, other)


def test_autocast_changes_nothing():
    runs = []
    for enabled in (False, True):
        args = leaves(*problem(), dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            codes = encoded(args)
            runs.append([codes.values, *torch.autograd.grad(codes.values.sum(), args)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_wrong_arguments_are_refused():
    x, W_enc, b_enc, W_dict, b_dec, *layers = problem()
    with pytest.raises(ValueError, match="1 steps and 2 thetas"):
        encode_unrolled(x, W_enc, b_enc, W_dict, layers[:1], layers[2:], b_dec)
    with pytest.raises(ValueError, match="backend='fast' is unknown"):
        encoded(problem(), "fast")
