"""Train LISTA (an SAE with the rule Unrolled and a fixed decoder) on a known dictionary."""

from __future__ import annotations

import pytest
import torch

from sae import SAE
from sae.autoencoder.losses import FVU, L1
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import Unrolled
from sae.inference import ista, squared_spectral_norm
from sae.metrics.code_matching import code_mcc_signed
from sae.training import Learner
from sae.training.optim_config import OptimConfig
from sae.worlds import SparseSuperposition


@pytest.mark.slow
def test_trained_lista_beats_as_many_iterations_of_ista():
    """The data have 16 features in 8 dimensions, 3 active; a linear encoder reaches 0.61."""
    layers, steps, penalty = 4, 700, 0.02
    world = SparseSuperposition(8, 16, 3, active="exact")
    batch = lambda split, number: world.block(split, number, 512, 0).acts["world"]
    step = 1 / squared_spectral_norm(world.truth)
    rule = Unrolled(d_sae=16, layers=layers, tied=False, step=step, theta=step * penalty)
    learner = Learner(
        SAE(8, rule, site=Autoencoder(hook="x")),
        [FVU(), L1(coefficient=penalty)],
        OptimConfig(lr=5e-3, lr_factors={"W_dec": 0.0, "b_dec": 0.0}),
        total_steps=steps,
        dead_after=10**9,
    )
    learner.initialise({"x": batch("train", 10**6)}, center=False)
    with torch.no_grad():
        learner.sae.W_dec.copy_(world.truth)
        learner.sae.W_enc.copy_(world.truth.t())
        learner.sae.b_dec.zero_()
    for number in range(steps):
        learner.step({"x": batch("train", number)})
    lista = learner.export()
    torch.testing.assert_close(lista.W_dec, world.truth, atol=1e-5, rtol=0)
    assert (lista.b_dec == 0).all()
    x, true = batch("held_out", 0), world.codes("held_out", 0, 512, 0)
    lista_mcc = code_mcc_signed(true, lista.encode(x))
    ista_mcc = code_mcc_signed(true, ista(x, world.truth, 0.0025, iterations=layers + 1).codes)
    assert lista_mcc > 0.9 > 0.8 > ista_mcc
