"""Compare matching pursuit with a written-out loop, dense and in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import SAE
from sae.autoencoder.losses import FVU
from sae.autoencoder.sites import Autoencoder, Transcoder
from sae.autoencoder.sparsity import MatchingPursuit
from sae.autoencoder.sparsity.matching_pursuit import merge_repeats
from sae.training import OptimConfig
from tiny import tiny_learner, tiny_sae

WIDTHS = {"x": 6, "y": 9}
SITES = {"Autoencoder": Autoencoder(hook="x"), "Transcoder": Transcoder(read="x", predict="y")}
K, D_SAE = 5, 30

each_site = pytest.mark.parametrize("site", SITES)


def make_sae(site: str, k: int = K, seed: int = 3) -> SAE:
    sae = tiny_sae(MatchingPursuit(d_sae=D_SAE, k=k), SITES[site], WIDTHS, seed=seed)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name.startswith("b"):
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator).double()
        if site == "Transcoder":  # norms other than 1, as after folding
            sae.W_enc *= torch.rand(D_SAE, generator=generator).double() + 0.5
    return sae


def data(batch: int = 25, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda width: torch.randn(batch, width, generator=generator).double() + 1
    return {hook: draw(width) for hook, width in WIDTHS.items()}


def pursue(sae: SAE, x: Tensor, k: int = K) -> Tensor:
    """Return dense codes from a loop over tokens and rounds."""
    of_x = sae.site.reads == sae.site.predicts
    directions = sae.W_dec if of_x else sae.W_enc.t()
    rows = []
    for token in x:
        r = token - sae.b_dec if of_x else token
        acts = torch.zeros(D_SAE, dtype=x.dtype)
        for _ in range(k):
            products = directions @ r if of_x else directions @ r + sae.b_enc
            best = int(products.argmax())
            value = products[best].relu()
            acts = acts + value * torch.eye(D_SAE, dtype=x.dtype)[best]
            taken = directions[best]
            r = r - value * taken / (1 if of_x else taken.detach().square().sum())
        rows.append(acts)
    return torch.stack(rows)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@each_site
def test_codes_and_gradients_equal_the_loop(site, backend):
    sae, acts = make_sae(site), data()
    x, y = sae.site.pair(acts)
    x = x.clone().requires_grad_()
    results = []
    for dense in (False, True):
        sae.zero_grad()
        x.grad = None
        if dense:
            z = pursue(sae, x)
            y_hat = z @ sae.W_dec + sae.b_dec
        else:
            codes = sae.encode_training(x, backend=backend).codes
            z, y_hat = codes.to_dense(), sae.decode(codes, backend=backend)
            assert codes.l0().tolist() == (z != 0).sum(1).tolist()
            assert torch.equal(codes.fired(), (z != 0).any(0))
        (y - y_hat).square().sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in sae.parameters()]
        results.append([z, x.grad, *[g.clone() for g in grads]])
    assert ((results[1][0] > 0).sum(1) < K).any(), "some latent should be picked twice"
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@each_site
def test_training_and_inference_give_the_same_codes(site):
    sae, acts = make_sae(site), data()
    x, _ = sae.site.pair(acts)
    trained, used = sae.encode_training(x).codes.to_dense(), sae.encode(x).to_dense()
    torch.testing.assert_close(trained, used, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(used, pursue(sae, x), rtol=1e-12, atol=1e-12)


def test_an_orthonormal_dictionary_gives_back_the_codes():
    sae = SAE(8, MatchingPursuit(d_sae=8, k=3), dtype=torch.float64)
    with torch.no_grad():
        random = torch.randn(8, 8, generator=torch.Generator().manual_seed(4)).double()
        sae.W_dec.copy_(torch.linalg.qr(random).Q)
        sae.W_enc.copy_(sae.W_dec.t())
        sae.b_dec.fill_(0.5)
    z = torch.zeros(4, 8).double()
    z[0, 2], z[1, [0, 5]], z[2, [1, 2, 3]] = 1.5, torch.tensor([2.0, 1.0]).double(), 1.0
    codes = sae.encode(z @ sae.W_dec + 0.5)
    torch.testing.assert_close(codes.to_dense(), z)
    assert (codes.values > 1e-9).sum(1).tolist() == [1, 2, 3, 0]


def test_the_residual_shrinks_in_every_round():
    x = data()["x"]
    left = []
    for k in range(1, 7):
        sae = make_sae("Autoencoder", k=k)
        left.append((x - sae(x)).square().sum(1))
    assert all(
        (later <= before + 1e-12).all() for before, later in zip(left, left[1:], strict=False)
    )
    assert left[-1].mean() < 0.3 * left[0].mean()


@pytest.mark.parametrize("unit_norm", [True, False])
@each_site
def test_a_step_keeps_norm_1_and_copies_W_dec_to_W_enc(site, unit_norm):
    sae = make_sae(site)
    optim = OptimConfig(lr=3e-2, unit_norm=unit_norm)
    learner = tiny_learner(sae, [FVU()], optim, total_steps=6)
    learner.initialise(data())
    before = sae.W_dec.detach().clone()
    for seed in range(3):
        learner.step(data(seed=seed))
    assert not torch.equal(before, sae.W_dec)
    directions = sae.W_dec if site == "Autoencoder" else sae.W_enc.t()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(D_SAE).double())
    if site == "Autoencoder":
        assert torch.equal(sae.W_enc, sae.W_dec.t())
    learner.optimizer.zero_grad()
    _, loss = learner(data(seed=9))
    loss.backward()
    for name in ("W_dec",) if site == "Autoencoder" else ("W_dec", "W_enc"):
        assert getattr(sae, name).grad is None, f"{name}'s gradient must come in parts"


@pytest.mark.parametrize("ema", [None, 0.9], ids=["schedule-free", "ema"])
@each_site
def test_averaged_weights_satisfy_the_constraints(site, ema):
    """A mean of unit vectors is shorter than norm 1, so averages must be projected."""
    optim = OptimConfig(lr=3e-2, name="adam" if ema else "signum")
    sae = make_sae(site)
    learner = tiny_learner(sae, [FVU()], optim, total_steps=6, ema=ema)
    learner.initialise(data())
    for seed in range(4):
        learner.step(data(seed=seed))
    mean = learner.eval_model() if ema is None else learner.average.averaged(sae)
    assert not torch.equal(mean.W_dec, sae.W_dec)
    x, _ = mean.site.pair(data(seed=9))
    trained, used = mean.encode_training(x).codes.to_dense(), mean.encode(x).to_dense()
    torch.testing.assert_close(used, trained, rtol=1e-12, atol=1e-12)
    directions = mean.W_dec if site == "Autoencoder" else mean.W_enc.t()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(D_SAE).double())


def test_repeated_picks_add_up_in_the_first_slot():
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 0.0, 0.0]], requires_grad=True)
    indices = torch.tensor([[3, 1, 3, 3], [5, 0, 0, 0]])
    codes = merge_repeats(values, indices, 6)
    assert codes.values.tolist() == [[13.0, 2.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]
    assert codes.l0().tolist() == [2, 2]
    weights = torch.tensor([[1.0, 10.0, 100.0, 1000.0]] * 2)
    (codes.values * weights).sum().backward()
    assert values.grad.tolist() == [[1.0, 10.0, 1.0, 1.0], [1.0, 10.0, 10.0, 10.0]]
