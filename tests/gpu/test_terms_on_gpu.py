"""Tests of loss terms that change between steps, in a step that is recorded once."""

from __future__ import annotations

import pytest
import torch

from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, AuxK, EveryPrefix, Matryoshka, MultiK, PreActs
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.training import Learner, OptimConfig
from sae.training.cuda_graph import GraphedStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TERMS = {
    "matryoshka": [Matryoshka(random=5), AuxK()],
    "fixed": [Matryoshka(weights=(1, 2, 3, 4, 5))],
    "every-prefix": [EveryPrefix()],
    "others": [FVU(), MultiK(), PreActs(coefficient=1.0)],
}


def learner(terms) -> Learner:
    trained = Learner(
        SAE(64, TopK(d_sae=1024, k=8), site=Autoencoder(hook="x"), seed=1),
        terms,
        OptimConfig(lr=1e-3),
        total_steps=100,
        dead_after=10**9,
        refresh_steps=10**9,
    ).cuda()
    trained.scale = {"x": 1.0}
    trained.dead.dead_list = torch.arange(50, device="cuda")
    trained.dead.tokens_since_fired[:50] = 2 * 10**9
    return trained


@pytest.mark.parametrize("name", TERMS)
def test_a_recorded_step_gives_the_same_bits_and_never_waits(name):
    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda: {"x": torch.randn(512, 64, generator=generator, device="cuda")}
    plain, recorded = learner(TERMS[name]), learner(TERMS[name])
    step = GraphedStep(recorded)
    for number in range(10):
        batch = draw()
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
        try:
            plain.step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        step(batch)
    for key, value in plain.sae.state_dict().items():
        assert torch.equal(value, recorded.sae.state_dict()[key]), key
    assert plain.pop_metrics() == recorded.pop_metrics()
