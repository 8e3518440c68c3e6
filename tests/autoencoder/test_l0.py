"""Test the values and straight-through gradients of L0."""

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
from sae.autoencoder.losses import L0
from sae.autoencoder.sparsity import Gated, ReLU

D_SAE = 36


class TestL0:
    @pytest.mark.parametrize("site", SITES)
    @pytest.mark.parametrize("kind", ["step", "quadratic"])
    def test_jumprelu_gets_gradients_only_at_thresholds(self, kind, site):
        term = L0(kind=kind, target_l0=7.0)
        learner, acts = jumprelu([term], site), activations()
        plain = dense(learner, acts)
        pre, theta = plain.pre.detach(), learner.sae.threshold.detach().clamp(min=0)
        l0 = (pre > theta).double().sum(1).mean()
        window = ((pre - theta).abs() < BANDWIDTH / 2).double()
        assert window[:, learner.sae.threshold < 0].any() and window.sum() > 50
        slope = 1.0 if kind == "step" else 2 * (l0 / 7 - 1) / 7
        expected = {name: torch.zeros_like(t) for name, t in plain.p.items()}
        expected["threshold"] = -slope * window.mean(0) / BANDWIDTH
        value = l0 if kind == "step" else (l0 / 7 - 1) ** 2
        for backend in ("auto", "reference"):
            learner.backend = backend
            assert_same(value_and_gradients(learner, term, acts)[:2], (value, expected))

    @pytest.mark.parametrize("site", SITES)
    def test_tanh_equals_the_formula_for_jumprelu(self, site):
        term = L0(kind="tanh", sharpness=2.5)
        learner, acts = jumprelu([term], site), activations()
        plain = dense(learner, acts)
        theta = plain.p["threshold"].detach().clamp(min=0)
        norms = sum(part.norm(dim=1) for part in plain.p["W_dec"].split(7, dim=1))
        f = torch.where(plain.pre.detach() > theta, plain.pre, 0)
        value = (2.5 * f * norms).tanh().sum(1).mean()
        expected = plain.gradients(value)
        slope = 2.5 * norms * (1 - (2.5 * f * norms).tanh().square()) / len(f)
        window = (plain.pre - theta).abs() < BANDWIDTH / 2
        expected["threshold"] = (-theta / BANDWIDTH * (window * slope).sum(0)).detach()
        for backend in ("auto", "reference"):
            learner.backend = backend
            assert_same(value_and_gradients(learner, term, acts)[:2], (value, expected))

    @pytest.mark.parametrize("rule", [ReLU(d_sae=D_SAE), Gated(d_sae=D_SAE)])
    def test_tanh_equals_the_formula_without_thresholds(self, rule):
        term = L0(kind="tanh")
        learner, acts = make_learner(rule, [term]), activations()
        plain = dense(learner, acts)
        check(learner, term, acts, (4 * plain.pre.relu() * plain.norms).tanh().sum(1).mean(), plain)

    @pytest.mark.parametrize("kind", ["step", "quadratic"])
    @pytest.mark.parametrize("rule", [ReLU(d_sae=D_SAE), Gated(d_sae=D_SAE)])
    def test_step_kinds_are_refused_without_thresholds(self, rule, kind):
        name = type(rule).__name__
        with pytest.raises(UserError, match=f"L0.kind={kind} trains thresholds, and {name}"):
            make_learner(rule, [L0(kind=kind, target_l0=3)])

    def test_quadratic_needs_a_target(self):
        with pytest.raises(UserError, match="L0.kind=quadratic needs target_l0"):
            jumprelu([L0(kind="quadratic")])
