"""A learner in float64 with arbitrary weights, and the same activations and parameters, dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.autoencoder.losses import ForwardOutput, LossTerm
from sae.autoencoder.sites import Autoencoder, CrossLayerTranscoder, Site, SkipTranscoder
from sae.autoencoder.sparsity import JumpReLU, Sparsity
from sae.training import Learner, OptimConfig
from sae_kernels import reference

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


def learner(
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
    bound = SITES[site].bind(WIDTHS)
    sae = SAE(bound.d_in, rule, site=bound, d_out=bound.d_out, seed=2, dtype=torch.float64)
    made = Learner(
        sae,
        terms,
        optim or OptimConfig(lr=1e-2, unit_norm=unit_norm),
        total_steps=total_steps,
        dead_after=dead_after,
        refresh_steps=1,
        backend=backend,
    )
    made.scale = dict.fromkeys(WIDTHS, 1.0)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sae.named_parameters()):
            if name != "threshold":
                parameter += 0.3 * draw(*parameter.shape, seed=100 + number)
        if unit_norm:
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.mask_decoder()
    return made


def jumprelu(terms: Sequence[LossTerm], site: str = "autoencode", d_sae: int = 36) -> Learner:
    """With thresholds that differ, some of them negative, and a latent that fires nowhere."""
    made = learner(JumpReLU(d_sae=d_sae, bandwidth=BANDWIDTH), terms, site)
    with torch.no_grad():
        made.sae.threshold += 0.4 * draw(d_sae, seed=9)
        made.sae.b_enc[7] -= 99
    return made


def gradients(made: Learner) -> dict[str, Tensor]:
    """Return the gradient of every parameter after a backward pass; 0 where there is none."""
    found = {}
    for name, parameter in made.sae.named_parameters():
        by_latent = (lambda t: t.t()) if name == "W_enc" else (lambda t: t)
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts = getattr(parameter, "row_grads", None)
        whole = reference.dense_gradient(by_latent(parameter).shape, by_latent(grad), parts)
        found[name] = by_latent(whole)
    made.optimizer.zero_grad()
    return found


def value_and_gradients(
    made: Learner, term: LossTerm, acts: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], ForwardOutput]:
    """Return the value of one term before its coefficient, and its gradients."""
    forward, _ = made(acts)
    value = term(forward)
    if value.requires_grad:
        value.backward()
    return value.detach(), gradients(made), forward


@dataclass
class Dense:
    """Leaves and what follows from them, by autograd over [batch, d_sae]."""

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
        found = torch.autograd.grad(value, list(self.p.values()), materialize_grads=True)
        return dict(zip(self.p, found, strict=True))


def dense(made: Learner, acts: dict[str, Tensor]) -> Dense:
    sae, site = made.sae, made.sae.site
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
    """relu of the k / layers largest of each layer's share of every row; ties to the first."""
    parts = []
    for part in pre.chunk(layers, dim=1):
        order = part.detach().sort(dim=1, descending=True, stable=True).indices[:, : k // layers]
        parts.append(torch.zeros_like(part).scatter(1, order, part.gather(1, order).relu()))
    return torch.cat(parts, dim=1)


def batch_top(pre: Tensor, k: int) -> Tensor:
    """relu of the k * batch largest of all."""
    least = pre.detach().flatten().sort(descending=True).values[k * len(pre) - 1]
    return torch.where(pre >= least, pre, 0).relu()


def assert_same(
    got: tuple[Tensor, dict[str, Tensor]], want: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(got[0], want[0].detach(), rtol=1e-10, atol=1e-12)
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        torch.testing.assert_close(got[1][name], grad, rtol=1e-9, atol=1e-11, msg=_named(name))


def _named(name: str):
    return lambda message: f"gradient of {name}: {message}"


def check(
    made: Learner, term: LossTerm, acts: dict[str, Tensor], value: Tensor, plain: Dense
) -> None:
    """The term's value and gradients are those of `value`, and on both backends."""
    want = value, plain.gradients(value)
    for backend in ("auto", "reference"):
        made.backend = backend
        got = value_and_gradients(made, term, acts)
        assert_same(got[:2], want)
