"""The two networks of the nonlinear world: a mixing g of latents, and a classifier f of data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, leaky_relu, linear, normalize

from sae.worlds.seeding import generator_of

Draw = Callable[[int], tuple[Tensor, Tensor]]
SLOPE = 0.2


class Mixing:
    """An invertible function g: square layers with LeakyReLU (slope 0.2) between them.

    Every layer is the best conditioned of `draws` matrices with entries from U(-1, 1) and columns
    of norm 1, as in the simulations of Reizinger et al. (arXiv 2410.21869).
    """

    def __init__(self, n: int, layers: int, draws: int, generator: Generator) -> None:
        self.weights: list[Tensor] = []
        for _ in range(layers):
            drawn = 2 * torch.rand(draws, n, n, generator=generator, dtype=torch.float64) - 1
            drawn = normalize(drawn, dim=1)
            self.weights.append(drawn[torch.linalg.cond(drawn).argmin()].float())

    def __call__(self, z: Tensor) -> Tensor:
        """Return x = g(z), both [batch, n]."""
        for layer, weight in enumerate(self.weights):
            z = linear(leaky_relu(z, SLOPE) if layer else z, weight)
        return z


class Classifier(nn.Module):
    """A classifier f: an MLP with batch normalisation and LeakyReLU, and a head without bias.

    Args:
        d_in: width of the data.
        widths: widths of the hidden layers.
        d_out: width of the representation, which the head reads.
        labels: number of labels.
        unit_head: keep the head's rows at norm 1. Theory then makes the map from latents to
            representation a multiple of an orthogonal map.
        seed: seed of the starting weights.
    """

    def __init__(
        self,
        d_in: int,
        widths: Sequence[int],
        d_out: int,
        labels: int,
        *,
        unit_head: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([d_in, *widths]):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.01)]
        self.body = nn.Sequential(*layers, nn.Linear([d_in, *widths][-1], d_out))
        self.head = nn.Linear(d_out, labels, bias=False)
        self.unit_head = unit_head
        generator = generator_of(seed, 0)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    module.weight.uniform_(-bound, bound, generator=generator)
                    if module.bias is not None:
                        module.bias.uniform_(-bound, bound, generator=generator)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the representation [batch, d_out] of data x [batch, d_in]."""
        return self.body(x)

    def logits(self, y: Tensor) -> Tensor:
        """Return the logits of the labels [batch, labels] from the representation."""
        weight = self.head.weight
        return linear(y, normalize(weight, dim=1) if self.unit_head else weight)

    @torch.no_grad()
    def fit_batch_norm(self, x: Tensor) -> None:
        """Set the statistics that batch normalisation uses in eval mode from data x."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_running_stats()
                module.momentum = None
        self.train()
        self(x)
        self.eval()

    def fit(self, draw: Draw, *, steps: int, batch_size: int, lr: float) -> None:
        """Minimise the cross-entropy of the labels by Adam on new samples, then `fit_batch_norm`.

        The learning rate rises over the first twentieth of the steps, then falls to zero along a
        cosine.

        Args:
            draw: returns (data, labels) of as many samples as it is given.
            steps: training steps.
            batch_size: samples per step.
            lr: highest learning rate.
        """
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        warmup = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2,
        )
        self.train()
        for _ in range(steps):
            x, labels = draw(batch_size)
            loss = cross_entropy(self.logits(self(x)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.fit_batch_norm(draw(16 * batch_size)[0])
