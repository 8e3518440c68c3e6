"""The exponential moving average of the weights."""

from __future__ import annotations

import copy

import pytest
import torch

from sae import SAE, UserError
from sae.autoencoder.losses import FVU, L0
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import JumpReLU
from sae.training import Learner, OptimConfig
from tiny import random_batch, tiny_learner, tiny_sae

D_IN, D_SAE, DECAY = 6, 20, 0.7


def make_learner(*, dtype=torch.float64, unit_norm=True, **optim) -> Learner:
    rule, site = JumpReLU(d_sae=D_SAE), Autoencoder(hook="a")
    trained = tiny_learner(
        tiny_sae(rule, site, {"a": D_IN}, dtype=dtype),
        [FVU(), L0(coefficient=1e-2)],
        OptimConfig(lr=3e-2, unit_norm=unit_norm, **optim),
        resample_every=10,
        ema=DECAY,
    )
    trained.initialise(random_batch(0, 256, dtype))
    return trained


@pytest.mark.parametrize("unit_norm", [True, False])
def test_average_weights_steps_by_age_and_excludes_the_start(unit_norm):
    trained, states = make_learner(unit_norm=unit_norm), []
    for number in range(6):
        trained.step(random_batch(number))
        states.append({n: t.clone() for n, t in trained.sae.state_dict().items()})
    average = trained.average.averaged(trained.sae)
    shares = [DECAY ** (5 - number) for number in range(6)]
    for name, value in average.state_dict().items():
        mean = sum(s * t[name].double() for s, t in zip(shares, states, strict=True)) / sum(shares)
        if name == "W_dec" and unit_norm:
            assert (mean.norm(dim=1) < 1 - 1e-6).any(), "mean rows must be shorter than 1"
            mean = mean / mean.norm(dim=1, keepdim=True)
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-9, msg=name)
    assert {"threshold", "b_enc"} <= set(states[0]) and not torch.equal(
        average.b_enc, trained.sae.b_enc
    )
    exported = trained.export(ema=True)
    acts = random_batch(9)
    x, _ = trained.scaled_pair(acts)
    y_hat = exported(acts["a"]) * trained.scale["a"] + trained.shifts()["a"]
    torch.testing.assert_close(y_hat, average(x))


def test_average_does_not_change_training():
    with_it, without = make_learner(), make_learner()
    without.average = None
    for number in range(4):
        with_it.step(random_batch(number))
        without.step(random_batch(number))
        with_it.export(ema=True)
    for (name, a), b in zip(
        with_it.sae.state_dict().items(), without.sae.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_resumed_average_has_the_same_bits(dtype):
    straight = make_learner(dtype=dtype)
    for number in range(10):
        if number == 4:
            saved = copy.deepcopy((straight.state_dict(), straight.optimizer.state_dict()))
        straight.step(random_batch(number, dtype=dtype))
    resumed = make_learner(dtype=dtype)
    resumed.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    for number in range(4, 10):
        resumed.step(random_batch(number, dtype=dtype))
    ends = [trained.export(ema=True).state_dict() for trained in (straight, resumed)]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    assert straight.average.W_dec.dtype == torch.float32


def test_average_of_resampled_latents_restarts():
    trained = make_learner()
    for number in range(3):
        trained.step(random_batch(number))
    trained.dead.tokens_since_fired[[2, 7]] = 10**7
    before = trained.average.W_enc.clone()
    trained.resample(random_batch(5))
    others = [n for n in range(D_SAE) if n not in (2, 7)]
    assert torch.equal(trained.average.W_enc[:, [2, 7]], trained.sae.W_enc[:, [2, 7]])
    assert torch.equal(trained.average.W_enc[:, others], before[:, others])
    assert torch.equal(trained.average.threshold[[2, 7]], trained.sae.threshold[[2, 7]])


def test_signum_and_decays_out_of_range_are_refused():
    with pytest.raises(UserError, match="ema: signum averages"):
        make_learner(name="signum")
    sae = SAE(D_IN, JumpReLU(d_sae=D_SAE))
    for decay in (0.0, 1.0):
        with pytest.raises(UserError, match=f"ema={decay}"):
            Learner(sae, [FVU(), L0()], OptimConfig(), total_steps=5, dead_after=5, ema=decay)
