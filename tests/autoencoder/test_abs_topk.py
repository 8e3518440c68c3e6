"""Compare AbsTopK with its formula, dense and in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import SAE, UserError
from sae.autoencoder.losses import FVU, L1
from sae.autoencoder.sparsity import AbsTopK, TopK
from sae.training import Learner, OptimConfig


def make_sae(d_sae: int = 40, k: int = 5) -> SAE:
    sae = SAE(12, AbsTopK(d_sae=d_sae, k=k), seed=3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).double()
    return sae


def data(batch: int = 30) -> Tensor:
    return torch.randn(batch, 12, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_codes_and_gradients_equal_the_formula(backend):
    sae, x = make_sae(), data()
    results = []
    for dense in (False, True):
        sae.zero_grad()
        if dense:
            pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
            kth = pre.abs().sort(dim=1, descending=True).values[:, 4:5]
            acts = pre * (pre.abs() >= kth)
            x_hat = acts @ sae.W_dec + sae.b_dec
        else:
            codes = sae.encode(x, backend=backend)
            acts, x_hat = codes.to_dense(), sae.decode(codes, backend=backend)
        (x - x_hat).square().sum().backward()
        results.append([acts, *[p.grad.clone() for p in sae.parameters()]])
    assert (acts < 0).any() and (acts > 0).any() and ((acts != 0).sum(1) == 5).all()
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_ties_go_to_the_lowest_index_for_either_sign(backend):
    sae = SAE(2, AbsTopK(d_sae=6, k=3))
    with torch.no_grad():
        sae.b_enc.copy_(torch.tensor([1.0, -2.0, -1.0, 1.0, 2.0, -1.0]))
    acts = sae.encode(torch.zeros(2, 2), backend=backend).to_dense()
    assert acts.tolist() == [[1.0, -2.0, 0.0, 0.0, 2.0, 0.0]] * 2


def test_positive_pre_activations_give_the_codes_of_topk():
    sae, x = make_sae(), data()
    with torch.no_grad():
        sae.b_enc += 100
    acts = sae.encode(x).to_dense()
    sae.sparsity = TopK(d_sae=40, k=5)
    assert torch.equal(acts, sae.encode(x).to_dense())


def test_a_latent_with_negative_activations_is_not_dead():
    sae = SAE(12, AbsTopK(d_sae=40, k=5), dtype=torch.float64)
    learner = Learner(sae, [FVU()], OptimConfig(lr=1e-3), total_steps=4, dead_after=100)
    acts = {"x": data()}
    learner.sae.site = learner.sae.site.bind({"x": 12})
    learner.initialise(acts)
    forward, _ = learner(acts)
    dense = forward.codes.to_dense()
    below = (dense < 0).any(0) & ~(dense > 0).any(0)
    assert below.any(), "no latent has only negative activations"
    learner.step(acts)
    assert (learner.dead.tokens_since_fired[below] == 0).all()


def test_penalties_on_activations_are_refused():
    with pytest.raises(UserError, match=r"L1 needs activations that are not negative.*AbsTopK"):
        L1().check(make_sae())


@pytest.mark.parametrize(("k", "message"), [(0, "k=0 lets no latent"), (41, "k=41 exceeds")])
def test_impossible_k_is_refused(k, message):
    with pytest.raises(UserError, match=message):
        AbsTopK(d_sae=40, k=k)
