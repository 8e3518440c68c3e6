"""Directions that a network learns: the toy models of superposition."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.errors import UserError
from sae.worlds.directions import Directions, Samples
from sae.worlds.seeding import generator_of


def toy_models(
    draw: Callable[[int], Tensor],
    n: int,
    m: int,
    *,
    instances: int = 1,
    importance: Tensor | None = None,
    steps: int = 3000,
    lr: float = 3e-3,
    seed: int = 0,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Train toy models x' = ReLU(W^T W x + b) side by side.

    They minimise sum_i importance_i (x_i - x'_i)^2 (Elhage et al. 2022, "Toy models of
    superposition") by AdamW with weight decay 0.01, as in the paper. The learning rate falls to
    zero along a cosine, which needs a third of the steps of a constant rate.

    Args:
        draw: returns new samples x for a step, [instances, batch, n], or [batch, n] for all.
        n: number of features.
        m: number of dimensions.
        instances: number of models.
        importance: weight of each feature, [n]; all 1 by default.
        steps: training steps.
        lr: highest learning rate.
        seed: seed of the starting weights, Xavier normal.
        start: starting weights [instances, m, n] to use instead.

    Returns:
        W [instances, m, n] and b [instances, n].
    """
    if start is None:
        normal = torch.randn(instances, m, n, generator=generator_of(seed, 2))
        start = normal * math.sqrt(2 / (n + m))
    W = start.clone().requires_grad_()
    b = torch.zeros(instances, 1, n).requires_grad_()
    weight = torch.ones(n) if importance is None else importance
    optimizer = torch.optim.AdamW([W, b], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    for step in range(steps):
        x = draw(step)
        x = x.expand(instances, *x.shape[-2:])
        reconstruction = torch.baddbmm(b, torch.bmm(x, W.mT), W).relu()
        loss = (weight * (x - reconstruction).square()).sum() / x.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return W.detach(), b.detach()[:, 0]


@dataclass(frozen=True, kw_only=True)
class ToyModel(Directions):
    """The W of a toy model trained to reconstruct the world's features x from h = W x.

    The model is x' = ReLU(W^T W x + b). Rows keep the norm that training gave them: a feature that
    the model does not represent has a norm near 0.

    Args:
        importance_decay: feature i (from 0) has the weight importance_decay^i in the loss.
        steps: training steps.
        batch_size: new samples per step.
        lr: highest learning rate.
    """

    learned = True

    importance_decay: float = 1.0
    steps: int = 3000
    batch_size: int = 1024
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if not 0 < self.importance_decay <= 1:
            raise UserError(
                f"importance_decay={self.importance_decay} must be above 0 and at most 1"
            )
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr={self.lr} must be a finite number above 0")

    def rows(self, n: int, d_in: int, seed: int, samples: Samples) -> Tensor:
        W, _ = toy_models(
            lambda step: samples(self.batch_size, step),
            n,
            d_in,
            importance=self.importance_decay ** torch.arange(n),
            steps=self.steps,
            lr=self.lr,
            seed=seed,
        )
        return W[0].T


def dimensions_per_feature(W: Tensor) -> Tensor:
    """Return D* = m / |W|_F^2 of W [..., m, n].

    It is 1 if every represented feature has its own dimension, and 1/2 if two share a dimension as
    antipodes.
    """
    return W.shape[-2] / W.square().sum((-2, -1))
