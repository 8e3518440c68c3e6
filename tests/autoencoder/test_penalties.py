"""L1 and L0: values, straight-through gradients, and when they weigh how much."""

from __future__ import annotations

import pytest
import torch
from objective_cases import (
    SITES,
    activations,
    assert_same,
    check,
    dense,
    draw,
    learner,
    value_and_gradients,
)

from sae import UserError
from sae.autoencoder.objective import FVU, L0, L1, GateReconstruction, Matryoshka
from sae.autoencoder.sparsity import Gated, JumpReLU, ReLU, TopK
from sae.training import OptimConfig
from sae.training.learner import check_objective, steered

D_SAE = 36
BANDWIDTH = 0.8


def jumprelu(terms, site="autoencode", **settings):
    made = learner(JumpReLU(d_sae=D_SAE, bandwidth=BANDWIDTH), terms, site, **settings)
    with torch.no_grad():
        made.sae.threshold += 0.4 * draw(D_SAE, seed=9)
        made.sae.b_enc[7] -= 99  # fires nowhere
    return made


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
        assert [term.at(t).p for t in (0.0, 0.5)] == [1.0, 1.0]
        assert term.at(1.0).p == pytest.approx(0.2)
        assert term.at(0.75).p == pytest.approx(0.6)
        seen = [term.at(t / 1000).p for t in range(1001)]
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
        with pytest.raises(UserError, match=f"model.objective L1.{message}"):
            L1(**settings)

    def test_a_penalty_that_large_decoder_rows_evade_is_refused(self):
        with pytest.raises(UserError, match="L1.decoder_norm=false.*evaded"):
            learner(ReLU(d_sae=D_SAE), [L1(decoder_norm=False)], unit_norm=False)


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
        with pytest.raises(UserError, match=f"L0.kind={kind} teaches thresholds, and {name}"):
            learner(rule, [L0(kind=kind, target_l0=3)])

    def test_quadratic_needs_a_target(self):
        with pytest.raises(UserError, match="L0.kind=quadratic needs target_l0"):
            jumprelu([L0(kind="quadratic")])


class TestWeight:
    def test_rises_from_0_over_the_warm_up(self):
        """The penalty's share of the loss, step by step."""
        terms = [FVU(), L1(coefficient=0.3, warmup=0.5)]
        made = learner(
            ReLU(d_sae=D_SAE), terms, total_steps=10, optim=OptimConfig(lr=1e-9, unit_norm=False)
        )
        acts = activations()
        plain = dense(made, acts)
        fvu = plain.fvu(plain.pre.relu()).item()
        l1 = (plain.pre.relu() * plain.norms).sum(1).mean().item()
        for weight in [0.2, 0.4, 0.6, 0.8, *[1.0] * 5]:
            made.step(acts)
            assert made.read()["loss"] == pytest.approx(fvu + 0.3 * weight * l1, rel=1e-6)

    def test_without_warm_up_it_is_whole_from_the_start(self):
        made = learner(ReLU(d_sae=D_SAE), [L1(warmup=0.0)])
        made.set_rate()
        assert made.warm.tolist() == [1.0]

    def test_a_resumed_run_warms_up_from_where_it_was(self):
        made = learner(ReLU(d_sae=D_SAE), [FVU(), L1(warmup=0.5)], total_steps=20)
        acts = activations()
        for _ in range(4):
            made.step(acts)
        resumed = learner(ReLU(d_sae=D_SAE), [FVU(), L1(warmup=0.5)], total_steps=20)
        resumed.load_state_dict(made.state_dict())
        resumed.set_rate()
        assert resumed.warm.tolist() == [1.0, 0.5]

    def test_the_learner_gives_the_loss_of_the_controllers_coefficient(self):
        made = learner(ReLU(d_sae=D_SAE), [L1(coefficient=0.3, target_l0=2, warmup=0)])
        acts = activations()
        for _ in range(3):
            made.set_rate()
            forward, loss = made(acts)
            want = made.controller.coefficient() * L1()(forward)
            torch.testing.assert_close(loss.detach(), want.detach())
            made.step(acts)
            assert made.read()["penalty_coefficient"] == made.controller.coefficient().item()


@pytest.mark.parametrize(
    ("rule", "terms", "message"),
    [
        (TopK(d_sae=8, k=2), [FVU(), L1(target_l0=3)], "L1.target_l0=3: TopK fixes its L0 itself"),
        (ReLU(d_sae=8), [FVU(), L1(target_l0=8)], "L1.target_l0=8 is not below d_sae=8"),
        (ReLU(d_sae=8), [FVU()], "no penalty, and nothing else keeps ReLU sparse"),
        (JumpReLU(d_sae=8), [Matryoshka()], "no penalty, and nothing else keeps JumpReLU"),
        (
            JumpReLU(d_sae=8),
            [FVU(), L1(target_l0=3), L0(target_l0=3)],
            "several terms with target_l0",
        ),
        (TopK(d_sae=8, k=2), [FVU(), GateReconstruction()], "GateReconstruction is for Gated"),
    ],
    ids=["k", "width", "none", "none-jumprelu", "two", "gates"],
)
def test_objectives_that_mean_nothing_are_refused(rule, terms, message):
    with pytest.raises(UserError, match=message):
        learner(rule, terms)


def test_objectives_that_mean_something():
    quadratic = L0(kind="quadratic", target_l0=3)
    assert steered([FVU(), quadratic]) is None, "its minimum is the target"
    assert steered([FVU(), quadratic, L1(target_l0=3)]) == 2
    assert steered([FVU(), L1()]) is None
    for rule, terms in (
        (TopK(d_sae=8, k=2), [FVU(), L1()]),
        (JumpReLU(d_sae=8), [FVU(), quadratic]),
        (Gated(d_sae=8), [FVU(), L1(target_l0=3), GateReconstruction()]),
    ):
        check_objective(learner(rule, terms).sae, terms)
