"""Test FVU, MSE and GateReconstruction."""

from __future__ import annotations

import pytest
import torch
from loss_cases import SITES, activations, check, dense, make_learner, top, value_and_gradients

from sae.autoencoder.losses import FVU, L1, MSE, GateReconstruction
from sae.autoencoder.sparsity import Gated, TopK

D_SAE, K = 36, 4


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("term", [FVU(), MSE()], ids=["fvu", "mse"])
def test_fvu_and_mse_equal_the_formulas(term, site):
    learner, acts = make_learner(TopK(d_sae=D_SAE, k=K), [term], site), activations()
    plain = dense(learner, acts)
    fvu = plain.fvu(top(plain.pre, K, learner.sae.site.groups))
    batch = len(acts["a"])
    value = fvu if isinstance(term, FVU) else fvu * plain.variance / batch
    check(learner, term, acts, value, plain)


@pytest.mark.parametrize("site", SITES)
def test_gate_reconstruction_does_not_train_the_decoder(site):
    term = GateReconstruction()
    learner, acts = make_learner(Gated(d_sae=D_SAE), [FVU(), L1(), term], site), activations()
    plain = dense(learner, acts)
    y_hat = plain.pre.relu() @ plain.p["W_dec"].detach() + plain.p["b_dec"].detach()
    value = (plain.target - y_hat).square().sum() / plain.variance
    check(learner, term, acts, value, plain)
    _, grads, _ = value_and_gradients(learner, term, acts)
    assert not grads["W_dec"].any() and not grads["r_mag"].any() and not grads["b_mag"].any()
    assert grads["b_enc"].abs().min() > 0 and grads["W_enc"].norm(dim=0).min() > 0
    if site != "autoencode":  # an autoencoder also subtracts b_dec before the gates
        assert not grads["b_dec"].any()


def test_gate_reconstruction_reaches_b_dec_only_through_the_encoder():
    """The gradient of b_dec comes from x - b_dec in the encoder, not from the decoder."""
    term = GateReconstruction()
    learner, acts = make_learner(Gated(d_sae=D_SAE), [FVU(), L1(), term]), activations()
    _, grads, _ = value_and_gradients(learner, term, acts)
    through_x = -(learner.sae.W_enc @ grads["b_enc"]).detach()
    torch.testing.assert_close(grads["b_dec"], through_x, rtol=1e-10, atol=1e-12)
