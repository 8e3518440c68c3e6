"""The L0 controller equals plain Python, and raises thresholds in the last fifth."""

from __future__ import annotations

import math

import pytest
import torch

from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, L0, L1
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import JumpReLU, ReLU
from sae.training import Learner, OptimConfig
from sae.training.l0_controller import L0Controller
from tiny import all_rules, penalties, tiny_learner, tiny_sae

TARGET, START = 20.0, 0.03
FALLING = {"first": 160.0, "until": 0.5}
L0S = [400.0, 90.0, 25.0, 20.0, 11.0, 0.0, 3.0, 22.0, 700.0, 19.0]


class PlainController:
    """The controller written with floats."""

    def __init__(self) -> None:
        self.integral, self.smooth, self.target = math.log(START), None, TARGET

    def set_target(self, progress: float) -> None:
        self.target = TARGET * 8 ** max(1 - progress / 0.5, 0.0)

    def error(self) -> float:
        if self.smooth is None:
            return 0.0
        return max(-1.0, min(1.0, self.smooth - math.log(self.target)))

    def coefficient(self) -> float:
        return math.exp(self.integral + 1.0 * self.error())

    def update(self, l0: float) -> None:
        log_l0 = math.log(max(l0, TARGET / 100))
        if self.smooth is None:
            self.smooth = log_l0
        self.smooth += L0Controller.SMOOTHING * (log_l0 - self.smooth)
        self.integral += 0.01 * self.error()


def run(controller: L0Controller, l0s: list[float], first: int = 0) -> list[float]:
    coefficients = []
    for number, l0 in enumerate(l0s, start=first):
        controller.set_target(number / len(L0S))
        coefficients.append(controller.coefficient().item())
        controller.update(torch.tensor(l0))
    return coefficients


def test_coefficient_equals_the_plain_controller():
    plain, expected = PlainController(), []
    for number, l0 in enumerate(L0S):
        plain.set_target(number / len(L0S))
        expected.append(plain.coefficient())
        plain.update(l0)
    assert expected[0] == pytest.approx(START)
    assert run(L0Controller(TARGET, START, **FALLING), L0S) == pytest.approx(expected, rel=1e-12)
    other = L0Controller(TARGET, START, gain=2.0, rate=0.1)
    other.update(torch.tensor(TARGET * math.exp(0.5)))
    assert other.coefficient().item() == pytest.approx(START * math.exp(0.05 + 1.0))


def test_threshold_rises_only_in_the_last_fifth():
    controller = L0Controller(TARGET, START)
    late = L0Controller(TARGET, START, first=40.0, until=0.9)
    late.set_target(0.89)
    assert not late.trims
    late.set_target(0.9)
    assert late.trims
    for progress, l0, rise in ((0.79, 25.0, 0.0), (0.8, 30.0, 0.03 * math.log(1.5))):
        controller.set_target(progress)
        controller.update(torch.tensor(l0))
        assert controller.threshold_rise().item() == pytest.approx(rise)


def test_current_target_falls_to_the_target():
    controller = L0Controller(TARGET, START, **FALLING)
    targets = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        controller.set_target(progress)
        targets.append(controller.log_target.exp().item())
    assert targets == pytest.approx([160.0, TARGET * 8**0.5, TARGET, TARGET])


def test_target_is_constant_without_first():
    controller = L0Controller(TARGET, START)
    for progress in (0.0, 0.5):
        controller.set_target(progress)
        assert controller.log_target.item() == math.log(TARGET)


@pytest.mark.parametrize("l0", [1e4, 0.0], ids=["above", "below"])
def test_error_is_clamped_to_one(l0):
    controller = L0Controller(TARGET, START)
    controller.set_target(1.0)
    sign = 1 if l0 else -1
    for step in range(1, 4):
        controller.update(torch.tensor(l0))
        exponent = sign * (0.01 * step + 1.0)
        assert controller.coefficient().item() == pytest.approx(START * math.exp(exponent))


def test_coefficient_is_constant_at_the_target():
    controller = L0Controller(TARGET, START)
    controller.set_target(1.0)
    for _ in range(5):
        controller.update(torch.tensor(TARGET))
    assert controller.coefficient().item() == pytest.approx(START, rel=1e-12)


def test_l0_of_zero_counts_as_a_hundredth_of_the_target():
    controller = L0Controller(TARGET, START)
    controller.set_target(1.0)
    controller.update(torch.tensor(TARGET))
    controller.update(torch.tensor(0.0))
    smooth = controller.log_l0.item() - math.log(TARGET)
    assert smooth == pytest.approx(-L0Controller.SMOOTHING * math.log(100))


def test_resumed_controller_continues_with_the_same_bits():
    uninterrupted = run(L0Controller(TARGET, START, **FALLING), L0S)
    for cut in (0, 1, 6):
        first = L0Controller(TARGET, START, **FALLING)
        assert run(first, L0S[:cut]) == uninterrupted[:cut]
        resumed = L0Controller(TARGET, 99.0, **FALLING)
        resumed.load_state_dict(first.state_dict())
        assert run(resumed, L0S[cut:], cut) == uninterrupted[cut:]


def test_bfloat16_l0_is_computed_in_float64():
    controller = L0Controller(TARGET, START)
    controller.update(torch.tensor(21.0, dtype=torch.bfloat16))
    assert controller.coefficient().dtype == torch.float64
    assert controller.log_l0.item() == math.log(21.0)


PENALIZED = {name: rule for name, rule in all_rules(32).items() if rule.needs_penalty}
# The parameter that the controller moves, and the sign with which a latent fires less.
THRESHOLDS = {
    "ReLU": ("b_enc", -1),
    "Gated": ("b_enc", -1),
    "Unrolled": ("b_enc", -1),
    "JumpReLU": ("threshold", 1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", PENALIZED.values(), ids=PENALIZED)
def test_threshold_of_each_rule_rises_if_l0_is_above_target(rule, dtype):
    threshold_param, sign = THRESHOLDS[type(rule).__name__]
    sae = tiny_sae(rule, Autoencoder(hook="x"), {"x": 16}, seed=0, dtype=dtype)
    terms = [FVU(), *penalties(rule, target_l0=1.0)]
    learner = tiny_learner(sae, terms, OptimConfig(lr=1e-30), total_steps=10, dead_after=100)
    acts = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    learner.initialise({"x": acts})
    for steps, rises in ((7, False), (9, True)):
        learner.steps = steps
        before = {name: p.detach().clone() for name, p in sae.named_parameters()}
        learner.step({"x": acts})
        rise = learner.controller.threshold_rise().item()
        assert (rise > 0.01) == rises
        for name, param in sae.named_parameters():
            state = learner.optimizer.state[param]
            if name == threshold_param and rises:
                wide = state.get("master", param)
                moved = (wide - before[name]).double()
                torch.testing.assert_close(
                    moved, torch.full_like(moved, sign * rise), rtol=1e-5, atol=1e-7
                )
            elif name not in ("W_dec", "W_enc"):
                torch.testing.assert_close(param, before[name], rtol=0, atol=1e-20)


@pytest.mark.parametrize(
    ("rule", "term", "gain", "rate"),
    [
        (JumpReLU, L0(target_l0=2), 3.0, 0.003),
        (JumpReLU, L0(target_l0=2, kind="tanh"), 1.0, 0.01),
        (ReLU, L1(target_l0=2), 1.0, 0.01),
    ],
    ids=["step", "tanh", "l1"],
)
def test_step_kind_of_l0_has_its_own_controller_settings(rule, term, gain, rate):
    sae = SAE(16, rule(d_sae=32))
    learner = Learner(sae, [FVU(), term], OptimConfig(), total_steps=10, dead_after=100)
    assert (learner.controller.gain, learner.controller.rate) == (gain, rate)
