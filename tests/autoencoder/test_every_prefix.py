"""Test EveryPrefix (HierarchicalTopK): the j largest codes reconstruct, for every j."""

from __future__ import annotations

import pytest
import torch
from loss_cases import SITES, activations, check, dense, make_learner, top

from sae import UserError
from sae.autoencoder.losses import FVU, L1, EveryPrefix
from sae.autoencoder.losses.every_prefix import ranks
from sae.autoencoder.sparsity import AbsTopK, BatchTopK, JumpReLU, ReLU, TopK
from sae_kernels.codes import Codes

D_SAE, K = 36, 6


def mean_over_prefixes(plain, acts, k):
    """Return the mean FVU of all prefixes of acts [batch, d_sae]; ties are ordered by latent."""
    order = acts.detach().sort(dim=1, descending=True, stable=True).indices
    place = order.argsort(dim=1)
    return sum(plain.fvu(torch.where(place < j, acts, 0)) for j in range(1, k + 1)) / k


@pytest.mark.parametrize("site", SITES)
def test_value_and_gradients_equal_the_mean_over_prefixes(site):
    term = EveryPrefix()
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=K), [term], site), activations()
    with torch.no_grad():
        learner.sae.b_enc -= 2.5
    plain = dense(learner, acts)
    fires = top(plain.pre, K, learner.sae.site.groups)
    l0 = fires.gt(0).sum(1)
    assert (l0 < K).any() and (l0 > 2).any(), "some slots must be empty"
    check(learner, term, acts, mean_over_prefixes(plain, fires, K), plain)


def test_equal_codes_are_ordered_by_latent():
    term = EveryPrefix()
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=K), [term]), activations()
    with torch.no_grad():  # sums of small integers are exact, so ties are exact
        generator = torch.Generator().manual_seed(0)
        learner.sae.W_enc.copy_(torch.randint(-1, 2, (6, D_SAE), generator=generator))
        learner.sae.W_enc[:, 20:] = learner.sae.W_enc[:, :16]
        learner.sae.b_enc.fill_(1.0)
        learner.sae.b_dec.zero_()
        acts["a"] = torch.randint(-2, 3, (23, 6), generator=generator).double()
    plain = dense(learner, acts)
    fires = top(plain.pre, K)
    values = fires.detach().sort(dim=1, descending=True).values[:, :K]
    assert ((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > 0)).sum() > 30
    check(learner, term, acts, mean_over_prefixes(plain, fires, K), plain)


def test_ranks_do_not_depend_on_the_order_of_slots():
    codes = Codes(
        torch.tensor([[1.0, -3.0, 2.0, -1.0], [0.0, 0.0, 5.0, 5.0]]),
        torch.tensor([[9, 1, 2, 3], [4, 0, 8, 7]]),
        d_sae=10,
    )
    assert ranks(codes).tolist() == [[3, 0, 1, 2], [3, 2, 1, 0]]


def test_signed_codes_are_ordered_by_magnitude():
    learner, acts = make_learner(AbsTopK(d_sae=D_SAE, k=K), [EveryPrefix()]), activations()
    plain = dense(learner, acts)
    order = plain.pre.detach().abs().argsort(dim=1, descending=True)
    value = sum(plain.fvu(plain.pre * (order.argsort(dim=1) < j)) for j in range(1, K + 1)) / K
    check(learner, EveryPrefix(), acts, value, plain)


def test_with_k_1_it_equals_fvu():
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=1), [FVU()]), activations()
    plain = dense(learner, acts)
    check(learner, EveryPrefix(), acts, plain.fvu(top(plain.pre, 1)), plain)


def test_annealed_k_changes_the_number_of_prefixes():
    learner = make_learner(TopK(d_sae=D_SAE, k=2, k_start=8, k_anneal=0.5), [EveryPrefix()])
    acts = activations()
    for step, k in ((0, 8), (5, 5), (15, 2)):
        learner.steps = step
        learner.update_schedules()
        plain = dense(learner, acts)
        value = mean_over_prefixes(plain, top(plain.pre, k), k)
        check(learner, EveryPrefix(), acts, value, plain)


@pytest.mark.parametrize("rule", [BatchTopK(d_sae=D_SAE, k=K), ReLU(d_sae=8), JumpReLU(d_sae=8)])
def test_rules_without_a_fixed_k_are_refused(rule):
    name = type(rule).__name__
    with pytest.raises(UserError, match=f"EveryPrefix needs the same k for every token.*{name}"):
        make_learner(rule, [EveryPrefix(), L1()])
