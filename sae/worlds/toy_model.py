"""Directions as a network lays them out itself: the toy models of superposition."""

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
    """W [instances, m, n] and b [instances, n] of x' = ReLU(W^T W x + b), trained side by side to
    minimise sum_i importance_i (x_i - x'_i)^2 (Elhage et al. 2022, "Toy models of superposition").

    AdamW as there, weight decay 0.01; the learning rate falls to zero along a cosine, which takes a
    third of the steps that a constant one takes.

    Args:
        draw: fresh x of a step, [instances, batch, n] or [batch, n] for all.
        n, m: numbers of features and of dimensions.
        importance: [n], all 1 when left out.
        steps, lr: length of the training, and its highest learning rate.
        seed: of the starting weights, Xavier normal.
        start: W to begin with, [instances, m, n], in place of those.
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
        rebuilt = torch.baddbmm(b, torch.bmm(x, W.mT), W).relu()
        loss = (weight * (x - rebuilt).square()).sum() / x.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return W.detach(), b.detach()[:, 0]


@dataclass(frozen=True, kw_only=True)
class ToyModel(Directions):
    """The W of x' = ReLU(W^T W x + b), trained to rebuild the world's own features x from h = W x.
    Rows are as long as training made them: a feature that is left out has one near 0.

    Args:
        importance_decay: feature i (from 0) matters by importance_decay^i.
        steps: of training.
        batch_size: fresh samples a step.
        lr: the highest learning rate.
    """

    learnt = True

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
    """D* = m / |W|_F^2 of W [..., m, n]: 1 where every feature that is kept has a dimension of its
    own, 1/2 where two share one as antipodes."""
    return W.shape[-2] / W.square().sum((-2, -1))
