"""Test the values and gradients of L1 and its p-norms, thresholds included."""

from __future__ import annotations

import pytest
import torch
from loss_cases import (
    BANDWIDTH,
    SITES,
    activations,
    assert_same,
    check,
    dense,
    jumprelu,
    make_learner,
    value_and_gradients,
)

from sae import UserError
from sae.autoencoder.losses import L1, GateReconstruction
from sae.autoencoder.sparsity import Gated, ReLU

D_SAE = 36


class TestL1:
    @pytest.mark.parametrize("unit_norm", [False, True], ids=["free", "unit-norm"])
    @pytest.mark.parametrize("site", SITES)
    def test_relu_equals_the_formula(self, site, unit_norm):
        term = L1()
        learner, acts = (
            make_learner(ReLU(d_sae=D_SAE), [term], site, unit_norm=unit_norm),
            activations(),
        )
        plain = dense(learner, acts)
        norms = 1.0 if unit_norm else plain.norms
        if site == "cross-layer" and not unit_norm:  # the norms of a latent in all layers are added
            norms = sum(part.norm(dim=1) for part in plain.p["W_dec"].split(7, dim=1))
        value = (plain.pre.relu() * norms).sum(1).mean()
        check(learner, term, acts, value, plain)

    @pytest.mark.parametrize("site", ["autoencode", "skip"])
    def test_gated_is_penalised_at_the_gates(self, site):
        term = L1()
        learner = make_learner(Gated(d_sae=D_SAE), [term, GateReconstruction()], site)
        acts = activations()
        plain = dense(learner, acts)
        value = (plain.pre.relu() * plain.norms).sum(1).mean()  # the bias of the gates is b_enc
        check(learner, term, acts, value, plain)

    def test_jumprelu_equals_the_formula(self):
        learner, acts = jumprelu([L1()]), activations()
        plain = dense(learner, acts)
        theta = plain.p["threshold"].detach().clamp(min=0)
        fires = plain.pre.detach() > theta
        value = (plain.pre * fires * plain.norms).sum(1).mean()
        expected = plain.gradients(value)
        window = ((plain.pre - theta).abs() < BANDWIDTH / 2).double().mean(0)
        expected["threshold"] = (-theta / BANDWIDTH * plain.norms * window).detach()
        for backend in ("auto", "reference"):
            learner.backend = backend
            assert_same(value_and_gradients(learner, L1(), acts)[:2], (value, expected))

    @pytest.mark.parametrize("p", [0.5, 0.9])
    def test_p_below_1_keeps_the_value_of_l1_and_scales_the_gradient(self, p):
        learner, acts = make_learner(ReLU(d_sae=D_SAE), [L1()]), activations()
        with torch.no_grad():
            learner.sae.b_enc[7] -= 99
            acts["a"][3] = learner.sae.b_dec
            learner.sae.b_enc.clamp_(max=-0.1)  # no latent is active in row 3
        plain = dense(learner, acts)
        fires = plain.pre.detach() > 0
        assert not fires[3].any()
        powers = (torch.where(fires, plain.pre, 1.0).pow(p) * fires * plain.norms).sum(1).mean()
        l1 = (plain.pre.relu() * plain.norms).sum(1).mean().detach()
        check(learner, L1(p=p), acts, powers * (l1 / powers.detach()), plain)

    def test_p_below_1_gives_empty_slots_no_gradient(self):
        """JumpReLU has slots for latents below the threshold, where f^p has an infinite slope."""
        learner, acts, p = jumprelu([L1()]), activations(), 0.5
        plain = dense(learner, acts)
        theta = plain.p["threshold"].detach().clamp(min=0)
        fires = plain.pre.detach() > theta
        assert (learner(acts)[0].codes.values == 0).any(), "no slot is empty, so nothing is tested"
        f = torch.where(fires, plain.pre, 1.0)
        powers = (f.pow(p) * fires * plain.norms).sum(1).mean()
        l1 = (plain.pre * fires * plain.norms).sum(1).mean().detach()
        constant = l1 / powers.detach()
        expected = plain.gradients(powers * constant)
        window = (plain.pre - theta).abs() < BANDWIDTH / 2
        slope = (constant * p * f.pow(p - 1) * plain.norms * fires * window).mean(0)
        expected["threshold"] = (-theta / BANDWIDTH * slope).detach()
        for backend in ("auto", "reference"):
            learner.backend = backend
            assert_same(value_and_gradients(learner, L1(p=p), acts)[:2], (l1, expected))

    def test_no_active_latent_does_not_divide_by_zero(self):
        learner, acts = make_learner(ReLU(d_sae=D_SAE), [L1()]), activations()
        with torch.no_grad():
            learner.sae.b_enc -= 99
        value, grads, _ = value_and_gradients(learner, L1(p=0.5), acts)
        assert value == 0 and not any(g.any() for g in grads.values())

    def test_decoder_norm_false_ignores_decoder_norms(self):
        term = L1(decoder_norm=False)
        learner, acts = make_learner(ReLU(d_sae=D_SAE), [term], unit_norm=True), activations()
        learner.sae.unit_norm = False  # otherwise all norms are 1
        plain = dense(learner, acts)
        check(learner, term, acts, plain.pre.relu().sum(1).mean(), plain)

    def test_p_falls_in_steps_after_its_start(self):
        term = L1(p=1.0, p_end=0.2, p_start_at=0.5)
        assert [term.at_progress(t).p for t in (0.0, 0.5)] == [1.0, 1.0]
        assert term.at_progress(1.0).p == pytest.approx(0.2)
        assert term.at_progress(0.75).p == pytest.approx(0.6)
        seen = [term.at_progress(t / 1000).p for t in range(1001)]
        assert seen == sorted(seen, reverse=True) and len(set(seen)) == 21

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"p": 0.0}, "p=0.0 must be above 0"),
            ({"p_end": 1.5}, "p_end=1.5 must be above 0 and at most 1"),
            ({"coefficient": 0.0}, "coefficient=0.0 must be positive"),
            ({"coefficient": float("nan")}, "coefficient=nan must be positive"),
            ({"target_l0": 0.0}, "target_l0=0.0 must be positive"),
            ({"warmup": 1.5}, "warmup=1.5 is a share of the run"),
            ({"warmup": -0.1}, "warmup=-0.1 is a share"),
        ],
        ids=str,
    )
    def test_wrong_settings_are_refused(self, settings, message):
        with pytest.raises(UserError, match=f"L1.{message}"):
            L1(**settings)

    def test_no_decoder_norm_without_unit_norm_is_refused(self):
        with pytest.raises(UserError, match="L1.decoder_norm=False.*evade"):
            make_learner(ReLU(d_sae=D_SAE), [L1(decoder_norm=False)], unit_norm=False)
