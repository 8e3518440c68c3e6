"""Multi-TopK: a second reconstruction from more latents."""

from __future__ import annotations

import pytest
import torch
from loss_cases import (
    SITES,
    activations,
    batch_top,
    check,
    dense,
    learner,
    top,
    value_and_gradients,
)

from sae import UserError
from sae.autoencoder.losses import FVU, L1, MultiK
from sae.autoencoder.sparsity import BatchTopK, ReLU, TopK

D_SAE, K = 36, 4


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("factor", [2, 4])
def test_value_and_gradients_of_topk(site, factor):
    term = MultiK(factor=factor)
    made, acts = learner(TopK(d_sae=D_SAE, k=K), [FVU(), term], site), activations()
    plain = dense(made, acts)
    value = plain.fvu(top(plain.pre, factor * K, made.sae.site.groups))
    check(made, term, acts, value, plain)


@pytest.mark.parametrize("site", ["autoencode", "skip"])
def test_value_and_gradients_of_batch_topk(site):
    term = MultiK(factor=3)
    made, acts = learner(BatchTopK(d_sae=D_SAE, k=K), [FVU(), term], site), activations()
    plain = dense(made, acts)
    check(made, term, acts, plain.fvu(batch_top(plain.pre, 3 * K)), plain)


def test_it_moves_the_encoder_of_latents_that_only_the_second_encoding_has():
    made, acts = learner(TopK(d_sae=D_SAE, k=1), [FVU(), MultiK(factor=8)]), activations()
    _, grads, forward = value_and_gradients(made, MultiK(factor=8), acts)
    only = top(dense(made, acts).pre, 8).gt(0).any(0) & ~forward.codes.fired()
    assert only.sum() > 3
    assert grads["W_enc"][:, only].norm(dim=0).min() > 1e-3
    assert grads["b_enc"][only].abs().min() > 0


def test_the_step_counts_by_the_first_encoding_alone():
    rule = BatchTopK(d_sae=D_SAE, k=1)
    acts = activations()
    ends = []
    for terms in ([FVU()], [FVU(), MultiK(factor=8, coefficient=1e-30)]):
        made = learner(rule, terms)
        made.step(acts)
        assert (made.dead.tokens_since_fired > 0).any()
        ends.append((made.dead.tokens_since_fired, made.sae.threshold, made.pop_metrics()["l0"]))
    for plain, multi in zip(*ends, strict=True):
        assert torch.equal(torch.as_tensor(plain), torch.as_tensor(multi))


def test_annealed_k_is_multiplied_up_to_all_latents():
    made = learner(TopK(d_sae=D_SAE, k=4, k_start=20, k_anneal=0.5), [FVU(), MultiK(factor=3)])
    acts = activations()
    for step, k in ((0, 36), (5, 36), (8, 21), (15, 12)):
        made.steps = step
        made.update_schedules()
        plain = dense(made, acts)
        check(made, MultiK(factor=3), acts, plain.fvu(top(plain.pre, k)), plain)


@pytest.mark.parametrize(
    ("rule", "factor", "message"),
    [
        (ReLU(d_sae=8), 4, "needs a rule with k, and ReLU has none"),
        (TopK(d_sae=D_SAE, k=10), 4, "factor=4 times k=10 exceeds d_sae=36"),
        (TopK(d_sae=D_SAE, k=2), 1, "factor=1; give at least 2"),
    ],
    ids=["no-k", "too-wide", "factor"],
)
def test_what_has_no_second_encoding_is_refused(rule, factor, message):
    with pytest.raises(UserError, match=f"MultiK.*{message}"):
        learner(rule, [FVU(), MultiK(factor=factor), L1()])
