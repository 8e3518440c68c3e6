"""L0: values and straight-through gradients."""

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
from sae.autoencoder.losses import L0
from sae.autoencoder.sparsity import Gated, ReLU

D_SAE = 36


class TestL0:
    @pytest.mark.parametrize("site", SITES)
    @pytest.mark.parametrize("kind", ["step", "quadratic"])
    def test_of_jumprelu_teaches_thresholds_alone(self, kind, site):
        term = L0(kind=kind, target_l0=7.0)
        made, acts = jumprelu([term], site), activations()
        plain = dense(made, acts)
        pre, theta = plain.pre.detach(), made.sae.threshold.detach().clamp(min=0)
        l0 = (pre > theta).double().sum(1).mean()
        window = ((pre - theta).abs() < BANDWIDTH / 2).double()
        assert window[:, made.sae.threshold < 0].any() and window.sum() > 50
        slope = 1.0 if kind == "step" else 2 * (l0 / 7 - 1) / 7
        want = {name: torch.zeros_like(t) for name, t in plain.p.items()}
        want["threshold"] = -slope * window.mean(0) / BANDWIDTH
        value = l0 if kind == "step" else (l0 / 7 - 1) ** 2
        for backend in ("auto", "reference"):
            made.backend = backend
            assert_same(value_and_gradients(made, term, acts)[:2], (value, want))

    @pytest.mark.parametrize("site", SITES)
    def test_tanh_of_jumprelu(self, site):
        term = L0(kind="tanh", sharpness=2.5)
        made, acts = jumprelu([term], site), activations()
        plain = dense(made, acts)
        theta = plain.p["threshold"].detach().clamp(min=0)
        norms = sum(part.norm(dim=1) for part in plain.p["W_dec"].split(7, dim=1))
        f = torch.where(plain.pre.detach() > theta, plain.pre, 0)
        value = (2.5 * f * norms).tanh().sum(1).mean()
        want = plain.gradients(value)
        slope = 2.5 * norms * (1 - (2.5 * f * norms).tanh().square()) / len(f)
        window = (plain.pre - theta).abs() < BANDWIDTH / 2
        want["threshold"] = (-theta / BANDWIDTH * (window * slope).sum(0)).detach()
        for backend in ("auto", "reference"):
            made.backend = backend
            assert_same(value_and_gradients(made, term, acts)[:2], (value, want))

    @pytest.mark.parametrize("rule", [ReLU(d_sae=D_SAE), Gated(d_sae=D_SAE)])
    def test_tanh_of_rules_without_thresholds(self, rule):
        term = L0(kind="tanh")
        made, acts = learner(rule, [term]), activations()
        plain = dense(made, acts)
        check(made, term, acts, (4 * plain.pre.relu() * plain.norms).tanh().sum(1).mean(), plain)

    @pytest.mark.parametrize("kind", ["step", "quadratic"])
    @pytest.mark.parametrize("rule", [ReLU(d_sae=D_SAE), Gated(d_sae=D_SAE)])
    def test_kinds_that_teach_thresholds_need_some(self, rule, kind):
        name = type(rule).__name__
        with pytest.raises(UserError, match=f"L0.kind={kind} trains thresholds, and {name}"):
            learner(rule, [L0(kind=kind, target_l0=3)])

    def test_quadratic_needs_a_target(self):
        with pytest.raises(UserError, match="L0.kind=quadratic needs target_l0"):
            jumprelu([L0(kind="quadratic")])
