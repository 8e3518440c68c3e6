"""HierarchicalTopK: the j largest codes reconstruct, for every j."""

from __future__ import annotations

import pytest
import torch
from loss_cases import SITES, activations, check, dense, learner, top

from sae import UserError
from sae.autoencoder.losses import FVU, L1, EveryPrefix
from sae.autoencoder.losses.every_prefix import ranks
from sae.autoencoder.sparsity import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from sae_kernels.codes import Codes

D_SAE, K = 36, 6


def mean_over_prefixes(plain, acts, k):
    """acts [batch, d_sae]; equal ones by latent."""
    order = acts.detach().sort(dim=1, descending=True, stable=True).indices
    place = order.argsort(dim=1)
    return sum(plain.fvu(torch.where(place < j, acts, 0)) for j in range(1, k + 1)) / k


@pytest.mark.parametrize("site", SITES)
def test_value_and_gradients_are_those_of_every_prefix(site):
    term = EveryPrefix()
    made, acts = learner(TopK(d_sae=D_SAE, k=K), [term], site), activations()
    with torch.no_grad():
        made.sae.b_enc -= 2.5
    plain = dense(made, acts)
    fires = top(plain.pre, K, made.sae.site.groups)
    l0 = fires.gt(0).sum(1)
    assert (l0 < K).any() and (l0 > 2).any(), "some slots are to be empty"
    check(made, term, acts, mean_over_prefixes(plain, fires, K), plain)


def test_equal_codes_go_by_latent():
    term = EveryPrefix()
    made, acts = learner(TopK(d_sae=D_SAE, k=K), [term]), activations()
    with torch.no_grad():  # small whole numbers: sums are exact and ties are ties
        generator = torch.Generator().manual_seed(0)
        made.sae.W_enc.copy_(torch.randint(-1, 2, (6, D_SAE), generator=generator))
        made.sae.W_enc[:, 20:] = made.sae.W_enc[:, :16]
        made.sae.b_enc.fill_(1.0)
        made.sae.b_dec.zero_()
        acts["a"] = torch.randint(-2, 3, (23, 6), generator=generator).double()
    plain = dense(made, acts)
    fires = top(plain.pre, K)
    values = fires.detach().sort(dim=1, descending=True).values[:, :K]
    assert ((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > 0)).sum() > 30
    check(made, term, acts, mean_over_prefixes(plain, fires, K), plain)


def test_ranks_are_by_size_whatever_the_order_of_slots():
    codes = Codes(
        torch.tensor([[1.0, -3.0, 2.0, -1.0], [0.0, 0.0, 5.0, 5.0]]),
        torch.tensor([[9, 1, 2, 3], [4, 0, 8, 7]]),
        d_sae=10,
    )
    assert ranks(codes).tolist() == [[3, 0, 1, 2], [3, 2, 1, 0]]


def test_signed_codes_go_by_size():
    made, acts = learner(AbsTopK(d_sae=D_SAE, k=K), [EveryPrefix()]), activations()
    plain = dense(made, acts)
    order = plain.pre.detach().abs().argsort(dim=1, descending=True)
    value = sum(plain.fvu(plain.pre * (order.argsort(dim=1) < j)) for j in range(1, K + 1)) / K
    check(made, EveryPrefix(), acts, value, plain)


def test_with_one_latent_a_token_it_is_fvu():
    made, acts = learner(TopK(d_sae=D_SAE, k=1), [FVU()]), activations()
    plain = dense(made, acts)
    check(made, EveryPrefix(), acts, plain.fvu(top(plain.pre, 1)), plain)


def test_k_that_is_annealed():
    made = learner(TopK(d_sae=D_SAE, k=2, k_start=8, k_anneal=0.5), [EveryPrefix()])
    acts = activations()
    for step, k in ((0, 8), (5, 5), (15, 2)):
        made.steps = step
        made.update_schedules()
        plain = dense(made, acts)
        value = mean_over_prefixes(plain, top(plain.pre, k), k)
        check(made, EveryPrefix(), acts, value, plain)


@pytest.mark.parametrize("rule", [BatchTopK(d_sae=D_SAE, k=K), ReLU(d_sae=8), JumpReLU(d_sae=8)])
def test_rules_without_a_fixed_k_are_refused(rule):
    name = type(rule).__name__
    with pytest.raises(UserError, match=f"EveryPrefix needs the same k for every token.*{name}"):
        learner(rule, [EveryPrefix(), L1()])
