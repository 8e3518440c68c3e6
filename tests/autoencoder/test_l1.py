"""L1 and its p-norms: values, and gradients with those of thresholds."""

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
    learner,
    value_and_gradients,
)

from sae import UserError
from sae.autoencoder.losses import L1, GateReconstruction
from sae.autoencoder.sparsity import Gated, ReLU

D_SAE = 36


class TestL1:
    @pytest.mark.parametrize("unit_norm", [False, True], ids=["free", "unit-norm"])
    @pytest.mark.parametrize("site", SITES)
    def test_of_relu(self, site, unit_norm):
        term = L1()
        made, acts = learner(ReLU(d_sae=D_SAE), [term], site, unit_norm=unit_norm), activations()
        plain = dense(made, acts)
        norms = 1.0 if unit_norm else plain.norms
        if site == "cross-layer" and not unit_norm:  # a latent's norms at all layers are added
            norms = sum(part.norm(dim=1) for part in plain.p["W_dec"].split(7, dim=1))
        value = (plain.pre.relu() * norms).sum(1).mean()
        check(made, term, acts, value, plain)

    @pytest.mark.parametrize("site", ["autoencode", "skip"])
    def test_of_gated_is_that_of_the_gates(self, site):
        term = L1()
        made = learner(Gated(d_sae=D_SAE), [term, GateReconstruction()], site)
        acts = activations()
        plain = dense(made, acts)
        value = (plain.pre.relu() * plain.norms).sum(1).mean()  # pi_gate has b_enc for a bias
        check(made, term, acts, value, plain)

    def test_of_jumprelu(self):
        made, acts = jumprelu([L1()]), activations()
        plain = dense(made, acts)
        theta = plain.p["threshold"].detach().clamp(min=0)
        fires = plain.pre.detach() > theta
        value = (plain.pre * fires * plain.norms).sum(1).mean()
        want = plain.gradients(value)
        window = ((plain.pre - theta).abs() < BANDWIDTH / 2).double().mean(0)
        want["threshold"] = (-theta / BANDWIDTH * plain.norms * window).detach()
        for backend in ("auto", "reference"):
            made.backend = backend
            assert_same(value_and_gradients(made, L1(), acts)[:2], (value, want))

    @pytest.mark.parametrize("p", [0.5, 0.9])
    def test_below_1_it_has_the_value_of_l1_and_the_gradient_of_the_norm_times_a_constant(self, p):
        made, acts = learner(ReLU(d_sae=D_SAE), [L1()]), activations()
        with torch.no_grad():
            made.sae.b_enc[7] -= 99
            acts["a"][3] = made.sae.b_dec
            made.sae.b_enc.clamp_(max=-0.1)  # an empty row, at which f^p has no slope
        plain = dense(made, acts)
        fires = plain.pre.detach() > 0
        assert not fires[3].any()
        powers = (torch.where(fires, plain.pre, 1.0).pow(p) * fires * plain.norms).sum(1).mean()
        l1 = (plain.pre.relu() * plain.norms).sum(1).mean().detach()
        check(made, L1(p=p), acts, powers * (l1 / powers.detach()), plain)

    def test_below_1_an_empty_slot_has_no_slope(self):
        """JumpReLU lists what lies just below its threshold, where f^p is infinitely steep."""
        made, acts, p = jumprelu([L1()]), activations(), 0.5
        plain = dense(made, acts)
        theta = plain.p["threshold"].detach().clamp(min=0)
        fires = plain.pre.detach() > theta
        assert (made(acts)[0].codes.values == 0).any(), "or no slot is empty"
        f = torch.where(fires, plain.pre, 1.0)
        powers = (f.pow(p) * fires * plain.norms).sum(1).mean()
        l1 = (plain.pre * fires * plain.norms).sum(1).mean().detach()
        constant = l1 / powers.detach()
        want = plain.gradients(powers * constant)
        window = (plain.pre - theta).abs() < BANDWIDTH / 2
        slope = (constant * p * f.pow(p - 1) * plain.norms * fires * window).mean(0)
        want["threshold"] = (-theta / BANDWIDTH * slope).detach()
        for backend in ("auto", "reference"):
            made.backend = backend
            assert_same(value_and_gradients(made, L1(p=p), acts)[:2], (l1, want))

    def test_nothing_that_fires_is_no_division_by_zero(self):
        made, acts = learner(ReLU(d_sae=D_SAE), [L1()]), activations()
        with torch.no_grad():
            made.sae.b_enc -= 99
        value, grads, _ = value_and_gradients(made, L1(p=0.5), acts)
        assert value == 0 and not any(g.any() for g in grads.values())

    def test_without_decoder_norms(self):
        term = L1(decoder_norm=False)
        made, acts = learner(ReLU(d_sae=D_SAE), [term], unit_norm=True), activations()
        made.sae.unit_norm = False  # or norms would be 1 anyway
        plain = dense(made, acts)
        check(made, term, acts, plain.pre.relu().sum(1).mean(), plain)

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

    def test_a_penalty_that_large_decoder_rows_evade_is_refused(self):
        with pytest.raises(UserError, match="L1.decoder_norm=False.*evade"):
            learner(ReLU(d_sae=D_SAE), [L1(decoder_norm=False)], unit_norm=False)
