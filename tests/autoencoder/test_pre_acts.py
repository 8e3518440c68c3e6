"""Test PreActs: the pre-activations of dead latents are raised towards the threshold."""

from __future__ import annotations

import pytest
import torch
from loss_cases import activations, check, dense, make_learner, value_and_gradients

from sae import UserError
from sae.autoencoder.losses import FVU, L0, L1, AuxK, PreActs
from sae.autoencoder.sparsity import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, TopK

D_SAE = 36
DEAD = [1, 4, 5, 20, 35]
RULES = {
    "jumprelu": (JumpReLU(d_sae=D_SAE), [L0()]),
    "relu": (ReLU(d_sae=D_SAE), [L1()]),
    "gated": (Gated(d_sae=D_SAE), [L1()]),
    "topk": (TopK(d_sae=D_SAE, k=3), []),
    "batch-topk": (BatchTopK(d_sae=D_SAE, k=3), []),
}


def case(rule: str, site: str = "autoencode", **settings):
    learner = make_learner(RULES[rule][0], [FVU(), PreActs(), *RULES[rule][1]], site, **settings)
    learner.dead.dead_after = 1000
    learner.dead.tokens_since_fired[DEAD] = 1000
    learner.dead.dead_list = torch.tensor([0, *DEAD])  # latent 0 fired after it was listed
    with torch.no_grad():
        if "threshold" in learner.sae.sparsity.extra_params():
            threshold = learner.sae.threshold
            threshold += torch.linspace(-0.7, 1.0, D_SAE) if threshold.dim() else 0.8
    return learner, activations()


@pytest.mark.parametrize("unit_norm", [False, True], ids=["free", "unit-norm"])
@pytest.mark.parametrize("site", ["autoencode", "skip"])
@pytest.mark.parametrize("rule", RULES)
def test_value_and_gradients_come_only_from_dead_latents(rule, site, unit_norm):
    learner, acts = case(rule, site, unit_norm=unit_norm)
    plain = dense(learner, acts)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[DEAD] = True
    threshold = plain.p.get("threshold", getattr(learner.sae, "threshold", torch.zeros(())))
    short = (threshold.clamp(min=0) - plain.pre).relu() * dead
    value = (short * (1.0 if unit_norm else plain.norms)).sum() / len(plain.x)
    assert 0 < short.gt(0).sum() < len(DEAD) * len(plain.x), "some above, some below it"
    check(learner, PreActs(), acts, value, plain)
    _, grads, _ = value_and_gradients(learner, PreActs(), acts)
    assert not grads["W_enc"][:, ~dead].any() and not grads["b_enc"][~dead].any()
    assert grads["W_enc"][:, dead].norm(dim=0).min() > 0
    if rule == "jumprelu":
        assert learner.sae.threshold.min() < 0, "no threshold is negative"
        assert grads["threshold"][20] > 0 and not grads["threshold"][1]


def test_without_dead_latents_value_and_gradients_are_0():
    learner, acts = case("jumprelu")
    learner.dead.dead_list = torch.zeros(0, dtype=torch.int64)
    value, grads, _ = value_and_gradients(learner, PreActs(), acts)
    assert value == 0 and not any(g.any() for g in grads.values())


def test_dead_latents_fire_again():
    learner = make_learner(
        JumpReLU(d_sae=D_SAE), [FVU(), PreActs(), L0(coefficient=1e-9)], dead_after=20
    )
    with torch.no_grad():
        learner.sae.b_enc[DEAD] = -9.0
    without = make_learner(JumpReLU(d_sae=D_SAE), [FVU(), L0(coefficient=1e-9)], dead_after=20)
    without.sae.load_state_dict(learner.sae.state_dict())
    acts = activations()
    for one in (learner, without):
        one.lr, one.total_steps = 0.1, 200
        for _ in range(100):
            one.step(acts)
    assert (without.dead.tokens_since_fired[DEAD] == 100 * len(acts["a"])).all()
    assert (learner.dead.tokens_since_fired[DEAD] < 100 * len(acts["a"])).all()


@pytest.mark.parametrize(
    ("terms", "longest"),
    [
        ([FVU()], 0),
        ([FVU(), PreActs()], 8 * 6),
        ([FVU(), PreActs(max_latents=5)], 5),
        ([FVU(), PreActs(max_latents=5), AuxK()], 16),
        ([FVU(), PreActs(max_latents=50), AuxK(k_aux=2)], 50),
    ],
    ids=["none", "default", "max_latents", "auxk-more", "auxk-less"],
)
def test_the_list_of_dead_latents_has_the_length_that_terms_need(terms, longest):
    assert make_learner(TopK(d_sae=D_SAE, k=3), terms).dead.max_listed == longest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficient": 0.0}, "coefficient=0.0 must be positive"),
        ({"max_latents": 0}, "max_latents=0; give"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=f"PreActs.{message}"):
        PreActs(**settings)


def test_signed_activations_are_refused():
    with pytest.raises(UserError, match="PreActs raises pre-activations.*AbsTopK"):
        make_learner(AbsTopK(d_sae=D_SAE, k=4), [FVU(), PreActs()])


def test_cross_layer_transcoders_are_refused():
    with pytest.raises(UserError, match="PreActs does not apply to CrossLayerTranscoder"):
        make_learner(TopK(d_sae=D_SAE, k=4), [FVU(), PreActs()], "cross-layer")
