"""Tests of gradients in parts: their sums, and the update that consumes them."""

from __future__ import annotations

import copy

import pytest
import torch

from kernel_cases import (
    assert_as_accurate,
    device,
    each_backend,
    each_dtype,
    leaves,
    mark_slow_in_interpreter,
    normal,
    ragged,
    slow_in_interpreter,
)
from sae_kernels import reference
from sae_kernels.adam import adam_rows_, square_norm
from sae_kernels.codes import Codes
from sae_kernels.decode import decode
from sae_kernels.encode_topk import encode_topk
from sae_kernels.row_grads import PairPart, RowGrads, RowPart

D_SAE, WIDTH = 37, 50
HYPER = {"lr": 3e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8}


def parts(dtype: torch.dtype, dev: str, seed: int = 0) -> RowGrads:
    """Return a part with fixed k, a ragged part with empty rows and repeats, and summed rows."""
    fixed = torch.stack(
        [
            torch.randperm(D_SAE, generator=torch.Generator().manual_seed(seed + b))[:5]
            for b in range(9)
        ]
    )
    fixed[:, 0] = 3  # one latent on every token
    fixed_k = Codes(normal(9, 5, seed=seed + 1, dtype=dtype), fixed, D_SAE)
    other = ragged([0, 3, 0, 7, 1], D_SAE, seed=seed + 2, dtype=dtype)
    grads = RowGrads()
    for codes, tokens in ((fixed_k, 9), (other, 5)):
        codes = Codes(
            codes.values.to(dev),
            codes.indices.to(dev),
            D_SAE,
            None if codes.offsets is None else codes.offsets.to(dev),
        )
        table = normal(tokens, WIDTH, seed=seed + tokens, dtype=dtype).to(dev)
        grads.pair_parts.append(PairPart(codes.by_latent(), codes.values.flatten(), table))
    latents_of_rows = torch.tensor([0, 3, 36], device=dev)
    grads.row_parts.append(
        RowPart(latents_of_rows, normal(3, WIDTH, seed=seed + 3, dtype=dtype).to(dev))
    )
    return grads


def as_double(grads: RowGrads) -> RowGrads:
    return RowGrads(
        [PairPart(p, w.double(), t.double()) for p, w, t in grads.pair_parts],
        [RowPart(latents, rows.double()) for latents, rows in grads.row_parts],
    )


def start(dtype: torch.dtype, dev: str, unit_norm: bool) -> torch.Tensor:
    param = normal(D_SAE, WIDTH, seed=40).to(dev)
    if unit_norm:
        param = param / param.norm(dim=1, keepdim=True)
    return param.to(torch.bfloat16).to(dtype)


def updated(dtype: torch.dtype, backend: str, unit_norm: bool, dense: bool, latent_major: bool):
    dev = device(backend)
    param = start(dtype, dev, unit_norm)
    state = [param, torch.zeros_like(param), torch.zeros_like(param)]
    if latent_major:
        state = [t.t() for t in state]
    scale = torch.tensor(0.37, dtype=torch.promote_types(dtype, torch.float32), device=dev)
    for step in (1, 2, 3):
        grads = parts(torch.bfloat16, dev, seed=100 * step)
        grads = RowGrads(
            [PairPart(p, w.to(dtype), t.to(dtype)) for p, w, t in grads.pair_parts],
            [RowPart(latents, rows.to(dtype)) for latents, rows in grads.row_parts],
        )
        dense_grad = normal(D_SAE, WIDTH, seed=step, dtype=dtype).to(dev) if dense else None
        if latent_major and dense:
            dense_grad = dense_grad.t()
        adam_rows_(
            state[0], dense_grad, *state[1:], step=step, unit_norm=unit_norm, row_grads=grads,
            scale=scale, backend=backend, **HYPER,
        )  # fmt: skip
    return state


@each_backend
@each_dtype
@pytest.mark.parametrize(
    "case",
    [slow_in_interpreter("plain"), "unit-norm", slow_in_interpreter("with-dense"), "latent-major"],
)
def test_update_from_parts_equals_the_reference(backend, dtype, case, monkeypatch):
    monkeypatch.setattr(
        "sae_kernels.cpu.row_grads.CHUNK_ELEMENTS", 8 * WIDTH
    )  # a ragged last chunk
    options = (case == "unit-norm", case in ("with-dense", "latent-major"), case == "latent-major")
    fast = updated(dtype, backend, *options)
    plain = updated(dtype, "reference", *options)
    truth = updated(torch.float64, "reference", *options)
    for name, *tensors in zip(["param", "exp_avg", "exp_avg_sq"], fast, plain, truth, strict=True):
        assert_as_accurate(*tensors, name)


@each_backend
@each_dtype
@pytest.mark.parametrize("dense", [False, True], ids=["parts", "and-dense"])
def test_square_norm(backend, dtype, dense, monkeypatch):
    monkeypatch.setattr("sae_kernels.cpu.row_grads.CHUNK_ELEMENTS", 8 * WIDTH)
    dev = device(backend)
    grads = parts(dtype, dev)
    param = start(dtype, dev, False)
    dense_grad = normal(D_SAE, WIDTH, seed=1, dtype=dtype).to(dev) if dense else None
    got = square_norm(param, dense_grad, grads, backend=backend)
    truth = reference.dense_gradient(
        param.shape, None if dense_grad is None else dense_grad.double(), as_double(grads)
    )
    eps = torch.finfo(dtype).eps
    assert got.dim() == 0 and got.item() == pytest.approx(
        truth.square().sum().item(), rel=max(8 * eps, 1e-6 if dtype != torch.float64 else 0)
    )


@each_backend
def test_ops_hand_over_parts_that_sum_to_the_gradient(backend):
    dev = device(backend)
    x, W_enc = normal(9, 12, seed=0).to(dev), normal(30, 12, seed=1).t().to(dev)
    rest = [normal(30, seed=2), normal(30, 12, seed=3), normal(12, seed=4)]
    grads = []
    for in_parts in (False, True):
        W, b_enc, W_dec, b_dec = leaves(W_enc, *rest, dtype=torch.float64, device=dev)
        if in_parts:
            W.row_grads, W_dec.row_grads = RowGrads(), RowGrads()
        for seed in (5, 6):  # the gradients of two backward passes add up
            codes = encode_topk(x * seed, W, b_enc, 4, b_dec, backend=backend)
            cotangent = normal(9, 12, seed=seed).to(dev)
            (decode(codes, W_dec, b_dec, backend=backend) * cotangent).sum().backward()
        if in_parts:
            assert W.grad is None and W_dec.grad is None
            dense_grad = [
                reference.dense_gradient(t.shape, None, p.row_grads)
                for t, p in ((W.t(), W), (W_dec, W_dec))
            ]
            grads.append([dense_grad[0], b_enc.grad, dense_grad[1], b_dec.grad])
        else:
            grads.append([W.grad.t(), b_enc.grad, W_dec.grad, b_dec.grad])
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@each_backend
def test_lazy_does_not_change_untouched_rows(backend):
    dev = device(backend)
    state = [start(torch.float64, dev, False), *[torch.ones(D_SAE, WIDTH).double().to(dev)] * 2]
    lazy, dense = copy.deepcopy(state), copy.deepcopy(state)
    grads = parts(torch.float64, dev)
    adam_rows_(
        *lazy[:1], None, *lazy[1:], step=1, row_grads=grads, lazy=True, backend=backend, **HYPER
    )
    adam_rows_(*dense[:1], None, *dense[1:], step=1, row_grads=grads, backend="reference", **HYPER)
    touched = reference.dense_gradient(state[0].shape, None, grads).abs().sum(1) > 0
    assert 0 < touched.sum() < D_SAE
    for before, after, exact in zip(state, lazy, dense, strict=True):
        assert torch.equal(after[~touched], before[~touched])
        torch.testing.assert_close(after[touched], exact[touched], rtol=1e-12, atol=1e-12)


@each_backend
@pytest.mark.parametrize("unit_norm", [False, True])
def test_master_accumulates_updates_below_bf16_precision(backend, unit_norm):
    dev = device(backend)
    master = start(torch.float32, dev, unit_norm)
    param = master.to(torch.bfloat16)
    want = [master.clone(), torch.zeros_like(master), torch.zeros_like(master)]
    moments = [torch.zeros_like(master), torch.zeros_like(master)]
    for step in range(1, 6):
        grads = parts(torch.bfloat16, dev, seed=step)
        adam_rows_(
            param, None, *moments, step=step, unit_norm=unit_norm, row_grads=grads, master=master,
            backend=backend, **{**HYPER, "lr": 1e-4},
        )  # fmt: skip
        adam_rows_(
            want[0], None, *want[1:], step=step, unit_norm=unit_norm, row_grads=as_double(grads),
            backend="reference", **{**HYPER, "lr": 1e-4},
        )  # fmt: skip
    torch.testing.assert_close(master, want[0], rtol=0, atol=2e-5)  # lr 1e-4: bf16 would not move
    # The interpreter truncates where a GPU rounds to nearest.
    torch.testing.assert_close(param.float(), master, rtol=2**-7, atol=0)


@each_backend
@mark_slow_in_interpreter
def test_bf16_moments_are_unbiased_and_reproducible(backend):
    dev = device(backend)
    steps, hyper = 200, {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    rows = torch.full((8, 64), 1.0, device=dev)
    runs = []
    for seed in (1, 1, 2):
        param = rows.clone()
        moments = [torch.zeros_like(param, dtype=torch.bfloat16) for _ in range(2)]
        for step in range(1, steps + 1):
            adam_rows_(param, rows * 0.7, *moments, step=step, seed=seed, backend=backend, **hyper)
        runs.append([param, *moments])
    for a, b in zip(runs[0], runs[1], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(runs[0][2], runs[2][2])
    # With rounding to nearest, exp_avg_sq would stop where its increment (g^2 - v) / 1000 is below
    # half a step of bf16. This is the exact value after 200 steps.
    exact = 0.49 * (1 - 0.999**steps)
    assert runs[0][2].double().mean().item() == pytest.approx(exact, rel=0.01)
    assert runs[0][1].double().mean().item() == pytest.approx(0.7, rel=0.005)


def test_no_gradient_is_refused():
    W = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="no gradient"):
        adam_rows_(W, None, W, W, step=1, **HYPER)
    with pytest.raises(ValueError, match="lazy"):
        adam_rows_(W, W, W, W, step=1, lazy=True, **HYPER)
