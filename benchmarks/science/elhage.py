"""Toy models of superposition: D*, the dimensions per feature, has plateaus at 1 and at 1/2.

x' = ReLU(W^T W x + b) of n features in 20 dimensions, x_i ~ U[0, 1] with probability `density`, all
equally important; D* = m / |W|_F^2. When features are dense, 20 of 200 have a dimension each; when
they are less dense, 40 share the dimensions in antipodal pairs; when they are sparser still, the
others are represented too.

The length of the plateau at 1/2 depends on the number of other features. With 200 features it lasts
from a density of 0.45 to 0.25, and no training extends it to a decade: antipodal pairs present at
the start of training persist down to 1/6, but from 1/5 on their loss is higher than that reached
from random weights. At 1/4 their loss is lower, but training from random weights may miss them, so
there the start with the lower loss is taken. With 40 features, as many as antipodal pairs can hold,
the plateau lasts over a decade.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.science.target import Measurement, Target
from sae.worlds.seeding import generator_of
from sae.worlds.toy_model import dimensions_per_feature, toy_models

N, M = 200, 20
# 1 / density of the models, which train in parallel.
RARITIES = (1.0, 1.2, 2.2, 2.4, 3.0, 3.5, 4.0, 5.0, 6.0, 10.0)
PLATEAU = RARITIES[2:7]
PAIRED = RARITIES[2:9]  # also trained from antipodal pairs
FULL_N, FULL = 2 * M, (2.4, 3.5, 5.0, 10.0, 15.0, 24.0)
STEPS, BATCH = 6000, 256
Draw = Callable[[int], Tensor]


def samples(rarities: tuple[float, ...], n: int, *, size: int = BATCH, seed: int = 0) -> Draw:
    """Return a function from the step to its samples, shape [rarities, size, n]."""
    density = 1 / torch.tensor(rarities)[:, None, None]

    def draw(step: int) -> Tensor:
        generator = generator_of(seed, step)
        x = torch.rand(len(rarities), size, n, generator=generator)
        return x * (torch.rand(x.shape, generator=generator) < density)

    return draw


def train(
    rarities: tuple[float, ...], n: int, *, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Train a model for each density.

    Returns:
        W, shape [rarities, M, n], and the losses on fresh samples, shape [rarities].
    """
    draw = samples(rarities, n)
    W, b = toy_models(draw, n, M, instances=len(rarities), steps=STEPS, lr=3e-3, start=start)
    return W, loss(W, b, samples(rarities, n, size=4096, seed=1)(0))


def loss(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Return the mean squared error of each model."""
    x_hat = (x @ W.mT @ W + b[:, None]).relu()
    return (x - x_hat).square().sum(2).mean(1)


def pairs(instances: int, n: int) -> Tensor:
    """Return W with 2 M features in antipodal pairs and the others near 0, [instances, M, n]."""
    W = 0.01 * torch.randn(instances, M, n, generator=generator_of(0, 2))
    W[:, :, :M] += torch.eye(M)
    W[:, :, M : 2 * M] -= torch.eye(M)
    return W


def antipodal_share(W: Tensor) -> float:
    """Return the share of features (norm above 1/2) with a cosine below -0.9 to another."""
    rows = W.T[W.norm(dim=0) > 0.5]
    cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    return (cosines.amin(1) < -0.9).double().mean().item()


def run() -> Iterator[Measurement]:
    """Yield D* over densities from both starts."""
    W, errors = train(RARITIES, N)
    d_star = dict(zip(RARITIES, dimensions_per_feature(W).tolist(), strict=True))
    error = dict(zip(RARITIES, errors.tolist(), strict=True))
    yield Measurement("D* at density 1 and 0.83", (d_star[1.0], d_star[1.2]), "1", 0.97, 1.03)
    for rarity in (5.0, 6.0, 10.0):
        yield Measurement(f"D* at density {1 / rarity:.2g}", (d_star[rarity],))
    yield Measurement(
        "features with an antipode, density 0.33", (antipodal_share(W[RARITIES.index(3.0)]),)
    )
    W, errors = train(PAIRED, N, start=pairs(len(PAIRED), N))
    d_star_paired = dict(zip(PAIRED, dimensions_per_feature(W).tolist(), strict=True))
    ratio = {r: e / error[r] for r, e in zip(PAIRED, errors.tolist(), strict=True)}
    plateau = tuple(d_star_paired[r] if ratio[r] < 1 else d_star[r] for r in PLATEAU)
    yield Measurement(
        "D* at density 0.45 to 0.25, lower loss of two starts", plateau, "1/2", 0.47, 0.53
    )
    yield Measurement("the same, random start only", tuple(d_star[r] for r in PLATEAU))
    stay = tuple(d_star_paired[r] for r in PAIRED if r > PLATEAU[0])
    yield Measurement("D* at density 0.42 to 0.17, started as antipodes", stay)
    for rarity in PAIRED[-3:]:
        what = f"loss of that start over the random one's, density {1 / rarity:.2g}"
        yield Measurement(what, (ratio[rarity],), high=1.0 if rarity in PLATEAU else None)
    W, _ = train(FULL, FULL_N)
    sparse = tuple(dimensions_per_feature(W).tolist())
    yield Measurement("D* of 40 features at density 0.42 to 0.042", sparse, "1/2", 0.47, 0.53)


SOURCE = "Elhage et al. 2022, Toy models of superposition: a plot without figures"
TARGETS = [Target("elhage", SOURCE, run)]
