"""Values of settings that are left out."""

from __future__ import annotations

import math

import pytest

from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, L0, L1
from sae.autoencoder.sparsity import JumpReLU, ReLU, TopK
from sae.training import Learner, OptimConfig, defaults


def made(optim: OptimConfig, steps: int = 100, rule=TopK(d_sae=256, k=4), term=FVU()) -> Learner:  # noqa: B008
    return Learner(SAE(64, rule), [FVU(), term], optim, total_steps=steps, dead_after=1000)


def test_the_learning_rate_lets_rows_turn_by_as_much_in_every_run():
    rate = made(OptimConfig(), steps=100).lr
    assert rate * math.sqrt(64 * 100) == pytest.approx(defaults.ROW_ROTATION)
    assert made(OptimConfig(), steps=400).lr == pytest.approx(rate / 2)
    assert {made(OptimConfig(name=name)).lr for name in ("adamw", "muon")} == {rate}
    assert made(OptimConfig(name="signum")).lr == 5e-3 * 8
    assert made(OptimConfig(lr=0.25)).lr == 0.25
    assert made(OptimConfig(), rule=ReLU(d_sae=256), term=L1()).lr == 2 * rate


@pytest.mark.parametrize(
    ("rule", "terms", "l0"),
    [
        (TopK(d_sae=64, k=5), [FVU()], 5),
        (ReLU(d_sae=64), [FVU(), L1(target_l0=7)], 7),
        (JumpReLU(d_sae=64), [FVU(), L0(coefficient=1.0)], 32),
    ],
)
def test_the_wanted_l0(rule, terms, l0):
    assert defaults.target_l0_of(rule, terms) == l0


def test_when_a_latent_is_dead():
    assert defaults.dead_after(8192, 32, tokens=1_048_576) == 131_072
    assert defaults.dead_after(8192, 32, tokens=500_000_000) == 10_000_000
    assert defaults.dead_after(10, 3, tokens=1) == 1707  # rounded up
    assert defaults.refresh_steps(131_072, 1024) == 50
    assert defaults.refresh_steps(32_768, 1024) == 16
    assert defaults.refresh_steps(10, 1024) == 1
