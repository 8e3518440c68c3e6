"""The pre-activation loss: dead latents are drawn towards their thresholds."""

from __future__ import annotations

import pytest
import torch
from loss_cases import activations, check, dense, learner, value_and_gradients

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
    made = learner(RULES[rule][0], [FVU(), PreActs(), *RULES[rule][1]], site, **settings)
    made.dead.dead_after = 1000
    made.dead.tokens_since_fired[DEAD] = 1000
    made.dead.silent = torch.tensor([0, *DEAD])  # the first has fired since it was listed
    with torch.no_grad():
        if "threshold" in made.sae.sparsity.extra_params():
            threshold = made.sae.threshold
            threshold += torch.linspace(-0.7, 1.0, D_SAE) if threshold.dim() else 0.8
    return made, activations()


@pytest.mark.parametrize("unit_norm", [False, True], ids=["free", "unit-norm"])
@pytest.mark.parametrize("site", ["autoencode", "skip"])
@pytest.mark.parametrize("rule", RULES)
def test_value_and_gradients_of_the_dead_alone(rule, site, unit_norm):
    made, acts = case(rule, site, unit_norm=unit_norm)
    plain = dense(made, acts)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[DEAD] = True
    threshold = plain.p.get("threshold", getattr(made.sae, "threshold", torch.zeros(())))
    short = (threshold.clamp(min=0) - plain.pre).relu() * dead
    value = (short * (1.0 if unit_norm else plain.norms)).sum() / len(plain.x)
    assert 0 < short.gt(0).sum() < len(DEAD) * len(plain.x), "some above, some below"
    check(made, PreActs(), acts, value, plain)
    _, grads, _ = value_and_gradients(made, PreActs(), acts)
    assert not grads["W_enc"][:, ~dead].any() and not grads["b_enc"][~dead].any()
    assert grads["W_enc"][:, dead].norm(dim=0).min() > 0
    if rule == "jumprelu":
        assert made.sae.threshold.min() < 0, "or negative thresholds are not tested"
        assert grads["threshold"][20] > 0 and not grads["threshold"][1]


def test_no_dead_latent_means_nothing_to_learn():
    made, acts = case("jumprelu")
    made.dead.silent = torch.zeros(0, dtype=torch.int64)
    value, grads, _ = value_and_gradients(made, PreActs(), acts)
    assert value == 0 and not any(g.any() for g in grads.values())


def test_it_brings_dead_latents_back():
    made = learner(JumpReLU(d_sae=D_SAE), [FVU(), PreActs(), L0(coefficient=1e-9)], dead_after=20)
    with torch.no_grad():
        made.sae.b_enc[DEAD] = -9.0
    without = learner(JumpReLU(d_sae=D_SAE), [FVU(), L0(coefficient=1e-9)], dead_after=20)
    without.sae.load_state_dict(made.sae.state_dict())
    acts = activations()
    for one in (made, without):
        one.lr, one.total_steps = 0.1, 200
        for _ in range(100):
            one.step(acts)
    assert (without.dead.tokens_since_fired[DEAD] == 100 * len(acts["a"])).all()
    assert (made.dead.tokens_since_fired[DEAD] < 100 * len(acts["a"])).all()


@pytest.mark.parametrize(
    ("terms", "most"),
    [
        ([FVU()], 0),
        ([FVU(), PreActs()], 8 * 6),
        ([FVU(), PreActs(most=5)], 5),
        ([FVU(), PreActs(most=5), AuxK()], 16),
        ([FVU(), PreActs(most=50), AuxK(k_aux=2)], 50),
    ],
    ids=["none", "default", "most", "auxk-more", "auxk-less"],
)
def test_the_list_of_dead_latents_is_as_long_as_the_terms_need(terms, most):
    assert learner(TopK(d_sae=D_SAE, k=3), terms).dead.most == most


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"coefficient": 0.0}, "coefficient=0.0 must be positive"), ({"most": 0}, "most=0; give")],
    ids=str,
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=f"PreActs.{message}"):
        PreActs(**settings)


def test_signed_activations_are_refused():
    with pytest.raises(UserError, match="PreActs raises pre-activations.*AbsTopK"):
        learner(AbsTopK(d_sae=D_SAE, k=4), [FVU(), PreActs()])


def test_latents_that_read_one_layer_each_are_refused():
    with pytest.raises(UserError, match="PreActs does not apply to CrossLayerTranscoder"):
        learner(TopK(d_sae=D_SAE, k=4), [FVU(), PreActs()], "cross-layer")
