"""Toy models of superposition: D*, dimensions per feature, sticks at 1 and then at 1/2.

x' = ReLU(W^T W x + b) of 200 features in 20 dimensions, x_i ~ U[0, 1] with probability `density`,
all of one importance; D* = m / |W|_F^2. Where features are dense, 20 of them have a dimension each;
where they are less so, two share one as antipodes; sparser still, they spread over all dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.science.target import Figure, Target
from sae.worlds.generator import generator_of
from sae.worlds.toy_model import dimensions_per_feature, toy_models

N, M = 200, 20
# 1 / density of the models trained side by side.
RARITIES = (1.0, 1.2, 2.8, 3.0, 3.2, 3.4, 5.0, 10.0)
STEPS, BATCH = 2500, 128


def draw(step: int) -> Tensor:
    generator = generator_of(0, step)
    density = 1 / torch.tensor(RARITIES)[:, None, None]
    x = torch.rand(len(RARITIES), BATCH, N, generator=generator)
    return x * (torch.rand(x.shape, generator=generator) < density)


def partners(W: Tensor) -> float:
    """Share of the features kept (norm above 1/2) that have an antipode (cosine below -0.9)."""
    rows = W.T[W.norm(dim=0) > 0.5]
    cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    return (cosines.amin(1) < -0.9).double().mean().item()


def run() -> Iterator[Figure]:
    W, _ = toy_models(draw, N, M, instances=len(RARITIES), steps=STEPS, lr=3e-3)
    found = dict(zip(RARITIES, dimensions_per_feature(W).tolist(), strict=True))
    over = lambda least, most: tuple(d for r, d in found.items() if least <= r <= most)
    yield Figure("D* at density 1 and 0.83", over(1, 1.2), "1", 0.97, 1.03)
    yield Figure("D* at density 0.36 to 0.29", over(2.8, 3.4), "1/2", 0.47, 0.53)
    yield Figure("D* at density 0.2", over(5, 5))
    yield Figure("D* at density 0.1", over(10, 10))
    yield Figure("features with an antipode, density 0.33", (partners(W[RARITIES.index(3.0)]),))


SOURCE = "Elhage et al. 2022, Toy models of superposition: a plot without figures"
TARGETS = [Target("elhage", SOURCE, run)]
