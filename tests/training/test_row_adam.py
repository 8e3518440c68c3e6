"""RowAdam equals torch.optim.Adam; its clipping and its saved state."""

from __future__ import annotations

import copy

import pytest
import torch

from sae.training.row_adam import RowAdam
from sae_kernels.codes import Codes
from sae_kernels.decode import decode

MODES = {
    "fp32": (torch.float32, {}),
    "bf16-moments": (torch.float32, {"moments": torch.bfloat16, "seed": 3}),
    "bf16-with-master": (torch.bfloat16, {"clip_norm": 0.5}),
}


def matrix(dtype: torch.dtype) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.Parameter(torch.randn(40, 12, generator=generator).to(dtype))


def make_optimizer(W, bias, options) -> RowAdam:
    return RowAdam([{"params": [bias]}, {"params": [W], "unit_norm": True}], lr=1e-2, **options)


def train(W, bias, optim, numbers) -> None:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        indices = torch.randint(40, (16, 3), generator=generator)
        codes = Codes(torch.rand(16, 3, generator=generator).to(W.dtype), indices, 40)
        decode(codes, W, bias).square().sum().backward()
        optim.step()
        optim.zero_grad()


@pytest.mark.parametrize("mode", MODES)
def test_saved_state_resumes_with_the_same_bits(mode):
    dtype, options = MODES[mode]
    W, bias = matrix(dtype), torch.nn.Parameter(torch.zeros(12, dtype=dtype))
    optim = make_optimizer(W, bias, options)
    train(W, bias, optim, range(3))
    saved = copy.deepcopy((W.detach(), bias.detach(), optim.state_dict()))
    train(W, bias, optim, range(3, 6))

    W2, bias2 = (torch.nn.Parameter(t.clone()) for t in saved[:2])
    resumed = make_optimizer(W2, bias2, options)
    resumed.load_state_dict(saved[2])
    train(W2, bias2, resumed, range(3, 6))
    assert torch.equal(W, W2) and torch.equal(bias, bias2)
    for a, b in zip(optim.state.values(), resumed.state.values(), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), name
            assert torch.as_tensor(a[name]).dtype == torch.as_tensor(b[name]).dtype, name


def test_bf16_moments_end_near_the_weights_of_fp32_moments():
    weights = []
    for dtype in (None, torch.bfloat16):
        W, bias = matrix(torch.float32), torch.nn.Parameter(torch.zeros(12))
        optim = make_optimizer(W, bias, {"moments": dtype})
        train(W, bias, optim, range(50))
        weights.append(W.detach())
        assert optim.state[W]["exp_avg_sq"].dtype == (dtype or torch.float32)
    moved = (
        weights[0] - torch.nn.functional.normalize(matrix(torch.float32).detach(), dim=1)
    ).norm()
    assert (weights[0] - weights[1]).norm() < 0.02 * moved


def test_clip_factor_is_over_all_parameters_and_at_most_one():
    for clip_norm, clipped in ((0.5, True), (1e9, False)):
        W, bias = matrix(torch.float32), torch.nn.Parameter(torch.zeros(12))
        optim = make_optimizer(W, bias, {"clip_norm": clip_norm})
        codes = Codes(torch.ones(4, 2), torch.tensor([[0, 1]] * 4), 40)
        decode(codes, W, bias).square().sum().backward()
        twin = [matrix(torch.float32), torch.nn.Parameter(torch.zeros(12))]
        acts = torch.zeros(4, 40).index_fill(1, torch.tensor([0, 1]), 1.0)
        (acts @ twin[0] + twin[1]).square().sum().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in twin])
        assert (norm.item() > clip_norm) == clipped
        expected = min(1.0, clip_norm / (norm.item() + 1e-6))
        assert optim.clip_factor().item() == pytest.approx(expected, rel=1e-6)


def test_zero_grad_clears_row_grads():
    W, bias = matrix(torch.float32), torch.nn.Parameter(torch.zeros(12))
    optim = make_optimizer(W, bias, {})
    codes = Codes(torch.ones(4, 2), torch.tensor([[0, 1]] * 4), 40)
    decode(codes, W, bias).sum().backward()
    assert W.grad is None and W.row_grads
    optim.zero_grad()
    assert not W.row_grads
    before = W.detach().clone()
    optim.step()
    assert torch.equal(W, before)


def test_row_adam_without_unit_norm_equals_torch_adam():
    W, twin = matrix(torch.float32), matrix(torch.float32)
    ours = RowAdam([{"params": [W]}], lr=1e-2, betas=(0.9, 0.98))
    theirs = torch.optim.Adam([twin], lr=1e-2, betas=(0.9, 0.98))
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        grad = torch.randn(40, 12, generator=generator)
        W.grad, twin.grad = grad.clone(), grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(W, twin, rtol=1e-5, atol=1e-6)
