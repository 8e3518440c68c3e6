"""Values of settings that are left out."""

from __future__ import annotations

import math

import pytest

from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, L0, L1, LossTerm
from sae.autoencoder.sparsity import JumpReLU, ReLU, Sparsity, TopK
from sae.training import Learner, OptimConfig, defaults


def make_learner(
    optim: OptimConfig, steps: int = 100, rule: Sparsity | None = None, term: LossTerm | None = None
) -> Learner:
    rule, term = rule or TopK(d_sae=256, k=4), term or FVU()
    return Learner(SAE(64, rule), [FVU(), term], optim, total_steps=steps, dead_after=1000)


def test_default_lr_turns_rows_by_the_same_angle_in_every_run():
    rate = make_learner(OptimConfig(), steps=100).lr
    assert rate * math.sqrt(64 * 100) == pytest.approx(defaults.ROW_ROTATION)
    assert make_learner(OptimConfig(), steps=400).lr == pytest.approx(rate / 2)
    assert {make_learner(OptimConfig(name=name)).lr for name in ("adamw", "muon")} == {rate}
    assert make_learner(OptimConfig(name="signum")).lr == 5e-3 * 8
    assert make_learner(OptimConfig(lr=0.25)).lr == 0.25
    assert make_learner(OptimConfig(), rule=ReLU(d_sae=256), term=L1()).lr == 2 * rate


@pytest.mark.parametrize(
    ("rule", "terms", "l0"),
    [
        (TopK(d_sae=64, k=5), [FVU()], 5),
        (ReLU(d_sae=64), [FVU(), L1(target_l0=7)], 7),
        (JumpReLU(d_sae=64), [FVU(), L0(coefficient=1.0)], 32),
    ],
)
def test_target_l0_is_k_or_target_l0_or_32(rule, terms, l0):
    assert defaults.target_l0_of(rule, terms) == l0


def test_dead_after_and_refresh_steps_follow_their_rules():
    assert defaults.dead_after(8192, 32, tokens=1_048_576) == 131_072
    assert defaults.dead_after(8192, 32, tokens=500_000_000) == 10_000_000
    assert defaults.dead_after(10, 3, tokens=1) == 1707  # rounded up
    assert defaults.refresh_steps(131_072, 1024) == 50
    assert defaults.refresh_steps(32_768, 1024) == 16
    assert defaults.refresh_steps(10, 1024) == 1
