from __future__ import annotations

import pytest
import torch

from kernel_cases import assert_as_accurate, each_dtype, leaves, normal
from sae_kernels import reference
from sae_kernels.pre_act_loss import pre_act_loss
from sae_kernels.row_grads import RowGrads

NAMES = ["W_enc", "b_enc", "b_dec", "theta"]


def problem(batch: int, d_in: int, d_sae: int, listed: int):
    latents = torch.randperm(d_sae, generator=torch.Generator().manual_seed(0))[:listed]
    W_enc = normal(d_sae, d_in, seed=1).t()
    weights = [W_enc, normal(d_sae, seed=2), normal(d_in, seed=4), normal(listed, seed=3)]
    return weights, normal(batch, d_in, seed=5), latents.sort().values


def run(case, dtype: torch.dtype, backend: str, centred: bool = True):
    weights, x, latents = case
    W_enc, b_enc, b_dec, theta = args = leaves(*weights, dtype=dtype)
    loss = pre_act_loss(
        x.to(dtype), W_enc, b_enc, theta, latents, b_dec=b_dec if centred else None, backend=backend
    )
    cotangent = torch.linspace(-1, 2, len(latents), dtype=loss.dtype)
    return [loss.detach(), *torch.autograd.grad(loss @ cotangent, args, materialize_grads=True)]


@each_dtype
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "as-it-is"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (37, 50, 777, 40), (63, 37, 1000, 37), (9, 20, 30, 30)], ids=str
)
def test_equals_the_reference(shape, centred, dtype):
    case = problem(*shape)
    fast = run(case, dtype, "torch", centred)
    plain = run(case, dtype, "reference", centred)
    truth = run(case, torch.float64, "reference", centred)
    for name, *tensors in zip(["short", *NAMES], fast, plain, truth, strict=True):
        assert_as_accurate(*tensors, name)


def test_pre_act_at_its_threshold_adds_nothing():
    eye, zeros = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    latents = torch.tensor([0, 1])
    x = torch.tensor([[1.0, 2.0, 3.0], [1.5, 0.5, 2.0]], dtype=torch.float64)
    theta = torch.tensor([1.5, 2.0], dtype=torch.float64, requires_grad=True)
    for backend in ("torch", "reference"):
        loss = pre_act_loss(x, eye, zeros, theta, latents, backend=backend)
        assert loss.tolist() == [0.5, 1.5]
        assert torch.autograd.grad(loss.sum(), theta)[0].tolist() == [1.0, 1.0]


def test_chunks_do_not_change_the_result(monkeypatch):
    case = problem(400, 9, 50, 11)
    dense = run(case, torch.float64, "torch")
    monkeypatch.setattr("sae_kernels.listed_latents.CHUNK_ELEMENTS", {"cpu": 1})  # 160 rows
    for a, b in zip(run(case, torch.float64, "torch"), dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradient_in_parts_equals_the_dense_one():
    (W, *others), x, latents = problem(30, 9, 50, 11)
    want = run(problem(30, 9, 50, 11), torch.float64, "torch")[1]
    W_enc, b_enc, b_dec, theta = leaves(W, *others, dtype=torch.float64)
    W_enc.row_grads = RowGrads()
    loss = pre_act_loss(x, W_enc, b_enc, theta, latents, b_dec=b_dec)
    (loss @ torch.linspace(-1, 2, 11, dtype=torch.float64)).backward()
    assert W_enc.grad is None
    dense = reference.dense_gradient(W_enc.t().shape, None, W_enc.row_grads)
    torch.testing.assert_close(dense, want.t(), rtol=1e-12, atol=1e-12)


def test_a_theta_of_another_length_is_refused():
    (W_enc, b_enc, _, theta), x, latents = problem(3, 9, 50, 11)
    with pytest.raises(ValueError, match=r"theta has shape \(10,\); latents \(11,\)"):
        pre_act_loss(x, W_enc, b_enc, theta[1:], latents)
