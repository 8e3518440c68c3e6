"""Test MultiK: a second reconstruction from more latents."""

from __future__ import annotations

import pytest
import torch
from loss_cases import (
    SITES,
    activations,
    batch_top,
    check,
    dense,
    make_learner,
    top,
    value_and_gradients,
)

from sae import UserError
from sae.autoencoder.losses import FVU, L1, MultiK
from sae.autoencoder.sparsity import BatchTopK, ReLU, TopK

D_SAE, K = 36, 4


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("factor", [2, 4])
def test_topk_equals_the_formula(site, factor):
    term = MultiK(factor=factor)
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=K), [FVU(), term], site), activations()
    plain = dense(learner, acts)
    value = plain.fvu(top(plain.pre, factor * K, learner.sae.site.groups))
    check(learner, term, acts, value, plain)


@pytest.mark.parametrize("site", ["autoencode", "skip"])
def test_batch_topk_equals_the_formula(site):
    term = MultiK(factor=3)
    learner, acts = make_learner(BatchTopK(d_sae=D_SAE, k=K), [FVU(), term], site), activations()
    plain = dense(learner, acts)
    check(learner, term, acts, plain.fvu(batch_top(plain.pre, 3 * K)), plain)


def test_latents_only_in_the_second_encoding_get_encoder_gradients():
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=1), [FVU(), MultiK(factor=8)]), activations()
    _, grads, forward = value_and_gradients(learner, MultiK(factor=8), acts)
    only = top(dense(learner, acts).pre, 8).gt(0).any(0) & ~forward.codes.fired()
    assert only.sum() > 3
    assert grads["W_enc"][:, only].norm(dim=0).min() > 1e-3
    assert grads["b_enc"][only].abs().min() > 0


def test_l0_and_dead_latents_count_only_the_first_encoding():
    rule = BatchTopK(d_sae=D_SAE, k=1)
    acts = activations()
    ends = []
    for terms in ([FVU()], [FVU(), MultiK(factor=8, coefficient=1e-30)]):
        learner = make_learner(rule, terms)
        learner.step(acts)
        assert (learner.dead.tokens_since_fired > 0).any()
        ends.append(
            (learner.dead.tokens_since_fired, learner.sae.threshold, learner.pop_metrics()["l0"])
        )
    for plain, multi in zip(*ends, strict=True):
        assert torch.equal(torch.as_tensor(plain), torch.as_tensor(multi))


def test_annealed_k_times_factor_is_at_most_d_sae():
    learner = make_learner(
        TopK(d_sae=D_SAE, k=4, k_start=20, k_anneal=0.5), [FVU(), MultiK(factor=3)]
    )
    acts = activations()
    for step, k in ((0, 36), (5, 36), (8, 21), (15, 12)):
        learner.steps = step
        learner.update_schedules()
        plain = dense(learner, acts)
        check(learner, MultiK(factor=3), acts, plain.fvu(top(plain.pre, k)), plain)


@pytest.mark.parametrize(
    ("rule", "factor", "message"),
    [
        (ReLU(d_sae=8), 4, "needs a rule with k, and ReLU has none"),
        (TopK(d_sae=D_SAE, k=10), 4, "factor=4 times k=10 exceeds d_sae=36"),
        (TopK(d_sae=D_SAE, k=2), 1, "factor=1; give at least 2"),
    ],
    ids=["no-k", "too-wide", "factor"],
)
def test_rules_and_factors_without_a_second_encoding_are_refused(rule, factor, message):
    with pytest.raises(UserError, match=f"MultiK.*{message}"):
        make_learner(rule, [FVU(), MultiK(factor=factor), L1()])
