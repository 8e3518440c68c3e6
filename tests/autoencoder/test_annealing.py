"""Test annealed k: its schedule, resuming, and the exported SAE."""

from __future__ import annotations

import pytest
import torch

from sae import SAE, UserError
from sae.autoencoder.losses import FVU
from sae.autoencoder.sites import Autoencoder, CrossLayerTranscoder
from sae.autoencoder.sparsity import AbsTopK, BatchTopK, TopK
from sae.training import Learner, OptimConfig
from tiny import tiny_learner, tiny_sae

TOTAL = 10
each_rule = pytest.mark.parametrize("rule", [TopK, BatchTopK, AbsTopK])


def make_learner(rule, *, k_start: int | None = 20, k_anneal: float = 0.5) -> Learner:
    sparsity = rule(d_sae=32, k=4, k_start=k_start, k_anneal=k_anneal)
    sae = tiny_sae(sparsity, Autoencoder(hook="h"), {"h": 9})
    return tiny_learner(sae, [FVU()], OptimConfig(lr=1e-3), total_steps=TOTAL)


def acts(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"h": torch.randn(50, 9, generator=generator).double() + 0.5}


@each_rule
def test_k_falls_linearly_and_then_stays(rule):
    annealed = rule(d_sae=100, k=4, k_start=64, k_anneal=0.5)
    at = lambda progress: annealed.at_progress(progress).k
    assert [at(p) for p in (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)] == [64, 49, 34, 19, 4, 4, 4]
    falling = [at(p / 200) for p in range(201)]
    assert all(a >= b for a, b in zip(falling, falling[1:], strict=False))
    assert annealed.at_progress(1.0) == annealed, "the configured rule must be saved"
    plain = rule(d_sae=100, k=4)
    assert all(plain.at_progress(p) is plain for p in (0.0, 0.5, 1.0))


@each_rule
def test_every_step_uses_the_scheduled_k(rule):
    learner = make_learner(rule)
    learner.initialise(acts(0))
    seen, most = [], []
    for step in range(TOTAL):
        learner.step(acts(step))
        seen.append(learner.sae.sparsity.k)
        most.append(learner.pop_metrics()["l0"])
    assert seen == [20, 17, 14, 10, 7, 4, 4, 4, 4, 4]
    if rule is TopK:  # about half of the 32 pre-activations are positive
        assert most[0] > 8 and max(most[5:]) <= 4
    else:
        assert most == ([min(k, m) for k, m in zip(seen, most, strict=True)])
        assert most[5:] == [4.0] * 5


@each_rule
@pytest.mark.parametrize("done", [2, 7])
def test_a_resumed_run_has_the_same_k_and_bits(rule, done):
    straight, resumed = make_learner(rule), make_learner(rule)
    straight.initialise(acts(0))
    for step in range(done):
        straight.step(acts(step))
    resumed.load_state_dict(straight.state_dict())
    resumed.optimizer.load_state_dict(straight.optimizer.state_dict())
    assert resumed.sae.sparsity == straight.sae.sparsity, "held-out metrics depend on it"
    for step in range(done, done + 2):
        for learner in (straight, resumed):
            learner.step(acts(step))
        assert resumed.sae.sparsity.k == straight.sae.sparsity.k
    for name, tensor in straight.sae.state_dict().items():
        assert torch.equal(resumed.sae.state_dict()[name], tensor), name


@each_rule
def test_the_exported_sae_has_the_final_k(rule):
    learner = make_learner(rule)
    learner.initialise(acts(0))
    learner.step(acts(0))
    assert learner.sae.sparsity.k == 20
    exported = learner.export()
    assert exported.sparsity == learner.rule and exported.sparsity.k == 4
    if rule is not BatchTopK:  # a trained BatchTopK encodes with its threshold
        assert exported.encode(acts(1)["h"]).l0().max() == 4


def test_layers_share_an_annealed_k():
    site = CrossLayerTranscoder(read=("a", "b"), predict=("c", "d")).bind(dict.fromkeys("abcd", 6))
    rule = TopK(d_sae=40, k=4, k_start=20, k_anneal=0.5)
    sae = SAE(6, rule, site=site, d_out=12, dtype=torch.float64)
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(2)).double() * 3
    most = []
    for progress in (0.0, 0.25, 1.0):
        sae.sparsity = rule.at_progress(progress)
        most.append(sae.encode(x).values.shape[1])
    assert most == [20, 12, 4]


@each_rule
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"k_start": 3, "k_anneal": 0.5}, "k_start=3 must be between k=4 and d_sae=32"),
        ({"k_start": 33, "k_anneal": 0.5}, "k_start=33 must be between k=4 and d_sae=32"),
        ({"k_anneal": 0.5}, "needs k_start"),
        ({"k_start": 8, "k_anneal": 1.5}, "k_anneal=1.5 is a share"),
    ],
)
def test_impossible_settings_are_refused(rule, setting, message):
    with pytest.raises(UserError, match=message):
        rule(d_sae=32, k=4, **setting)
