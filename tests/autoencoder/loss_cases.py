"""Learners in float64 with arbitrary weights, and the same loss terms computed densely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.autoencoder.losses import ForwardOutput, LossTerm
from sae.autoencoder.sites import Autoencoder, CrossLayerTranscoder, Site, SkipTranscoder
from sae.autoencoder.sparsity import JumpReLU, Sparsity
from sae.training import Learner, OptimConfig
from tiny import dense_gradients, tiny_learner, tiny_sae

BATCH = 23
BANDWIDTH = 0.8
WIDTHS = {"a": 6, "b": 7, "c": 6, "d": 7}
SITES: dict[str, Site] = {
    "autoencode": Autoencoder(hook="a"),
    "skip": SkipTranscoder(read="a", predict="b"),
    "cross-layer": CrossLayerTranscoder(read=("a", "c"), predict=("b", "d")),
}


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def activations(batch: int = BATCH) -> dict[str, Tensor]:
    return {hook: draw(batch, width, seed=ord(hook)) + 0.3 for hook, width in WIDTHS.items()}


def make_learner(
    rule: Sparsity,
    terms: Sequence[LossTerm],
    site: str = "autoencode",
    *,
    backend: str = "auto",
    unit_norm: bool = False,
    total_steps: int = 20,
    dead_after: int = 10**9,
    optim: OptimConfig | None = None,
) -> Learner:
    learner = tiny_learner(
        tiny_sae(rule, SITES[site], WIDTHS, seed=2),
        terms,
        optim or OptimConfig(lr=1e-2, unit_norm=unit_norm),
        total_steps=total_steps,
        dead_after=dead_after,
        backend=backend,
    )
    sae = learner.sae
    learner.scale = dict.fromkeys(WIDTHS, 1.0)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sae.named_parameters()):
            if name != "threshold":
                parameter += 0.3 * draw(*parameter.shape, seed=100 + number)
        if unit_norm:
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.mask_decoder()
    return learner


def jumprelu(terms: Sequence[LossTerm], site: str = "autoencode", d_sae: int = 36) -> Learner:
    """Return a JumpReLU learner: thresholds differ, some are negative, and latent 7 never fires."""
    learner = make_learner(JumpReLU(d_sae=d_sae, bandwidth=BANDWIDTH), terms, site)
    with torch.no_grad():
        learner.sae.threshold += 0.4 * draw(d_sae, seed=9)
        learner.sae.b_enc[7] -= 99
    return learner


def gradients(learner: Learner) -> dict[str, Tensor]:
    """Return the gradient of every parameter after a backward pass, and forget them."""
    result = dense_gradients(learner.sae)
    learner.optimizer.zero_grad()
    return result


def value_and_gradients(
    learner: Learner, term: LossTerm, acts: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], ForwardOutput]:
    """Return the value of one term before its coefficient, and its gradients."""
    forward, _ = learner(acts)
    value = term(forward)
    if value.requires_grad:
        value.backward()
    return value.detach(), gradients(learner), forward


@dataclass
class Dense:
    """Parameters as leaves, and dense pre-activations [batch, d_sae] computed from them."""

    p: dict[str, Tensor]
    x: Tensor
    y: Tensor
    pre: Tensor
    target: Tensor
    variance: Tensor

    @property
    def norms(self) -> Tensor:
        return self.p["W_dec"].norm(dim=1)

    def fvu(self, acts: Tensor) -> Tensor:
        """Return the FVU of the reconstruction from acts [batch, d_sae]."""
        y_hat = acts @ self.p["W_dec"] + self.p["b_dec"]
        return (self.target - y_hat).square().sum() / self.variance

    def gradients(self, value: Tensor) -> dict[str, Tensor]:
        result = torch.autograd.grad(value, list(self.p.values()), materialize_grads=True)
        return dict(zip(self.p, result, strict=True))


def dense(learner: Learner, acts: dict[str, Tensor]) -> Dense:
    sae, site = learner.sae, learner.sae.site
    p = {name: t.detach().clone().requires_grad_() for name, t in sae.named_parameters()}
    x = torch.cat([acts[hook] for hook in site.reads], dim=1)
    y = torch.cat([acts[hook] for hook in site.predicts], dim=1)
    layers = len(site.reads)
    size = sae.d_sae // layers
    inside = x - p["b_dec"] if site.reads == site.predicts else x
    columns = [
        inside[:, n * sae.d_in : (n + 1) * sae.d_in] @ p["W_enc"][:, n * size : (n + 1) * size]
        for n in range(layers)
    ]
    pre = torch.cat(columns, dim=1) + p["b_enc"]
    target = y - x @ p["W_skip"] if "W_skip" in p else y
    return Dense(p, x, y, pre, target, (y - y.mean(0)).square().sum())


def top(pre: Tensor, k: int, layers: int = 1) -> Tensor:
    """Return the relu of the k / layers largest of each layer's latents; ties go to the first."""
    parts = []
    for part in pre.chunk(layers, dim=1):
        order = part.detach().sort(dim=1, descending=True, stable=True).indices[:, : k // layers]
        parts.append(torch.zeros_like(part).scatter(1, order, part.gather(1, order).relu()))
    return torch.cat(parts, dim=1)


def batch_top(pre: Tensor, k: int) -> Tensor:
    """Return the relu of the k * batch largest pre-activations of the batch."""
    least = pre.detach().flatten().sort(descending=True).values[k * len(pre) - 1]
    return torch.where(pre >= least, pre, 0).relu()


def assert_same(
    actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(actual[0], expected[0].detach(), rtol=1e-10, atol=1e-12)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        torch.testing.assert_close(actual[1][name], grad, rtol=1e-9, atol=1e-11, msg=_named(name))


def _named(name: str):
    return lambda message: f"gradient of {name}: {message}"


def check(
    learner: Learner, term: LossTerm, acts: dict[str, Tensor], value: Tensor, plain: Dense
) -> None:
    """Assert that the term has the value and the gradients of `value`, on both backends."""
    expected = value, plain.gradients(value)
    for backend in ("auto", "reference"):
        learner.backend = backend
        actual = value_and_gradients(learner, term, acts)
        assert_same(actual[:2], expected)
