"""Test Unrolled: its formula, and its convergence to the lasso."""

from __future__ import annotations

import pytest
import torch

from sae import SAE, UserError
from sae.autoencoder.losses import FVU
from sae.autoencoder.sites import Autoencoder, Transcoder
from sae.autoencoder.sparsity import Unrolled
from sae.inference.fista import fista, squared_spectral_norm
from sae.training import Learner, OptimConfig

D_IN, D_SAE = 7, 20


def make_sae(site: str, *, tied: bool, layers: int = 3) -> SAE:
    rule = Unrolled(d_sae=D_SAE, layers=layers, tied=tied, step=0.2, theta=0.1)
    bound = Autoencoder(hook="x").bind({"x": D_IN})
    if site == "Transcoder":
        bound = Transcoder(read="x", predict="y").bind({"x": D_IN, "y": 5})
    sae = SAE(D_IN, rule, site=bound, d_out=bound.d_out, seed=1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).double()
    return sae


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("site", ["Autoencoder", "Transcoder"])
def test_codes_and_gradients_equal_the_formula(site, tied, backend):
    sae = make_sae(site, tied=tied)
    x = torch.randn(15, D_IN, generator=torch.Generator().manual_seed(2)).double()
    x.requires_grad_()
    results = []
    for dense in (False, True):
        sae.zero_grad()
        x.grad = None
        if dense:
            of_x = site == "Autoencoder"
            pre = (x - sae.b_dec if of_x else x) @ sae.W_enc + sae.b_enc
            D = sae.W_dec if of_x else (sae.W_enc / sae.W_enc.norm(dim=0).pow(2)).t()
            z = pre.relu()
            for layer in (1, 2, 3):
                step = getattr(sae, "step" if tied else f"step_{layer}")
                theta = getattr(sae, "theta" if tied else f"theta_{layer}")
                z = (z + step * (pre - z @ D @ sae.W_enc) - theta).relu()
        else:
            z = sae.encode(x, backend=backend).to_dense()
        (z.square().sum() + (z @ sae.W_dec).sum()).backward()
        read = [p for n, p in sae.named_parameters() if n != "b_dec" or site == "Autoencoder"]
        results.append([z, x.grad, *[p.grad.clone() for p in read]])
    assert 0.1 < (z > 0).double().mean() < 0.9
    for actual, expected in zip(*results, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_extra_parameters_are_per_latent_and_per_layer_if_untied():
    of_latents = lambda sae: {n: tuple(getattr(sae, n).shape) for n in sae.sparsity.extra_params()}
    assert of_latents(make_sae("Autoencoder", tied=True)) == dict.fromkeys(
        ("step", "theta"), (D_SAE,)
    )
    names = [f"{name}_{layer}" for name in ("step", "theta") for layer in (1, 2, 3)]
    assert of_latents(make_sae("Autoencoder", tied=False)) == dict.fromkeys(names, (D_SAE,))


def test_many_layers_solve_the_lasso():
    """With step 1 / |D|^2 and theta = penalty * step, each layer is an iteration of ISTA."""
    penalty = 0.3
    rule = Unrolled(d_sae=D_SAE, layers=2000)
    sae = SAE(D_IN, rule, seed=1, dtype=torch.float64)
    step = 1 / squared_spectral_norm(sae.W_dec)
    with torch.no_grad():
        sae.b_dec.fill_(0.4)
        sae.step.fill_(step)
        sae.theta.fill_(penalty * step)
        x = torch.randn(6, D_IN, generator=torch.Generator().manual_seed(3)).double() * 2
        z = sae.encode(x).to_dense()
    exact = fista(x, sae.W_dec, penalty, b=sae.b_dec, tolerance=0, iterations=3000)
    torch.testing.assert_close(z, exact.codes.to_dense(), rtol=1e-6, atol=1e-6)


def test_a_latent_of_a_transcoder_does_not_inhibit_itself():
    """The term z D W_enc of a single latent is z, so only other latents are subtracted."""
    sae = make_sae("Transcoder", tied=True)
    with torch.no_grad():
        sae.W_enc.copy_(torch.zeros(D_IN, D_SAE))
        sae.W_enc[0, 0], sae.W_enc[1, 1] = 3.0, 0.5
        sae.b_enc.zero_()
        sae.theta.zero_()
        sae.W_enc[2:, 2:] = 1.0
        x = torch.zeros(1, D_IN).double()
        x[0, 0] = 2.0
        assert sae.encode(x).to_dense()[0, :2].tolist() == pytest.approx([6.0, 0.0])


def test_training_without_a_penalty_is_refused():
    with pytest.raises(UserError, match="nothing else keeps Unrolled sparse"):
        Learner(
            make_sae("Autoencoder", tied=True), [FVU()], OptimConfig(), total_steps=3, dead_after=10
        )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": 0}, "layers=0 unrolls nothing"),
        ({"step": 0.0}, "step=0.0 must be positive"),
        ({"theta": -0.1}, "theta=-0.1 must not be negative"),
        ({"d_sae": 0}, "d_sae=0"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        Unrolled(**{"d_sae": 8, **setting})
