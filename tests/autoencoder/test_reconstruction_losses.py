"""FVU, MSE, and what the gates of a Gated SAE reconstruct."""

from __future__ import annotations

import pytest
import torch
from loss_cases import SITES, activations, check, dense, learner, top, value_and_gradients

from sae.autoencoder.losses import FVU, L1, MSE, GateReconstruction
from sae.autoencoder.sparsity import Gated, TopK

D_SAE, K = 36, 4


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("term", [FVU(), MSE()], ids=["fvu", "mse"])
def test_squared_error_by_variance_or_by_tokens(term, site):
    made, acts = learner(TopK(d_sae=D_SAE, k=K), [term], site), activations()
    plain = dense(made, acts)
    fvu = plain.fvu(top(plain.pre, K, made.sae.site.groups))
    batch = len(acts["a"])
    value = fvu if isinstance(term, FVU) else fvu * plain.variance / batch
    check(made, term, acts, value, plain)


@pytest.mark.parametrize("site", SITES)
def test_gates_reconstruct_with_a_decoder_that_is_held(site):
    term = GateReconstruction()
    made, acts = learner(Gated(d_sae=D_SAE), [FVU(), L1(), term], site), activations()
    plain = dense(made, acts)
    y_hat = plain.pre.relu() @ plain.p["W_dec"].detach() + plain.p["b_dec"].detach()
    value = (plain.target - y_hat).square().sum() / plain.variance
    check(made, term, acts, value, plain)
    _, grads, _ = value_and_gradients(made, term, acts)
    assert not grads["W_dec"].any() and not grads["r_mag"].any() and not grads["b_mag"].any()
    assert grads["b_enc"].abs().min() > 0 and grads["W_enc"].norm(dim=0).min() > 0
    if site != "autoencode":  # there b_dec is taken off x too, which the gates read
        assert not grads["b_dec"].any()


def test_gates_whose_bias_is_not_read_leave_b_dec_alone():
    """The gradient of an autoencoder's b_dec comes through x - b_dec, and not from the decoder."""
    term = GateReconstruction()
    made, acts = learner(Gated(d_sae=D_SAE), [FVU(), L1(), term]), activations()
    _, grads, _ = value_and_gradients(made, term, acts)
    through_x = -(made.sae.W_enc @ grads["b_enc"]).detach()
    torch.testing.assert_close(grads["b_dec"], through_x, rtol=1e-10, atol=1e-12)
