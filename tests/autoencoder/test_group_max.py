"""Compare GroupMax with its formula, dense and in float64."""

from __future__ import annotations

import pytest
import torch

from sae import SAE, UserError
from sae.autoencoder.sites import CrossLayerTranscoder
from sae.autoencoder.sparsity import GroupMax


def make_sae() -> SAE:
    sae = SAE(12, GroupMax(d_sae=40, k=5), seed=3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
        sae.b_enc -= 1.2  # some groups have no positive pre-activation
    return sae


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_codes_and_gradients_equal_the_formula(backend):
    sae = make_sae()
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for dense in (False, True):
        sae.zero_grad()
        if dense:
            pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
            groups = pre.view(30, 5, 8)
            wins = groups == groups.amax(2, keepdim=True)
            acts = (groups * wins).relu().view(30, 40)
            x_hat = acts @ sae.W_dec + sae.b_dec
        else:
            codes = sae.encode(x, backend=backend)
            acts, x_hat = codes.to_dense(), sae.decode(codes, backend=backend)
        (x - x_hat).square().sum().backward()
        results.append([acts, *[p.grad.clone() for p in sae.parameters()]])
    l0 = (acts > 0).sum(1)
    assert (l0 < 5).any() and (l0 > 1).any()
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_ties_go_to_the_lowest_index(backend):
    sae = SAE(2, GroupMax(d_sae=8, k=2))
    with torch.no_grad():
        sae.b_enc.copy_(torch.tensor([1.0, 3.0, 3.0, 2.0, -1.0, -1.0, 5.0, 5.0]))
    acts = sae.encode(torch.zeros(2, 2), backend=backend).to_dense()
    assert acts.tolist() == [[0, 3.0, 0, 0, 0, 0, 5.0, 0]] * 2


def test_layers_keep_the_size_of_a_group():
    site = CrossLayerTranscoder(read=("a", "b"), predict=("c", "d")).bind(dict.fromkeys("abcd", 6))
    sae = SAE(6, GroupMax(d_sae=40, k=10), site=site, d_out=12, dtype=torch.float64)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1)).double()
    acts = sae.encode(x).to_dense()
    assert ((acts.view(50, 10, 4) > 0).sum(2) <= 1).all() and (acts > 0).any(0).all()


def test_groups_of_unequal_size_are_refused():
    with pytest.raises(UserError, match=r"d_sae=40 cannot be divided into k=6"):
        GroupMax(d_sae=40, k=6)
