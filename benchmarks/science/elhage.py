"""Toy models of superposition: D*, dimensions per feature, sticks at 1 and then at 1/2.

x' = ReLU(W^T W x + b) of n features in 20 dimensions, x_i ~ U[0, 1] with probability `density`, all
of one importance; D* = m / |W|_F^2. Where features are dense, 20 of 200 have a dimension each;
where they are less so, 40 do, two a dimension as antipodes; sparser still, the others come in too.

How long the plateau at 1/2 is depends on how many others there are. Of 200 features it lasts from a
density of 0.45 to 0.25, and no training makes it a decade: antipodes that training starts with do
stay down to 1/6, but from 1/5 on they rebuild worse than what random weights arrive at. At 1/4 they
rebuild better, where random weights may miss them: there the start with the lower loss is taken. Of
40 features, which the antipodes hold, the plateau lasts over a decade.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.science.target import Measurement, Target
from sae.worlds.seeding import generator_of
from sae.worlds.toy_model import dimensions_per_feature, toy_models

N, M = 200, 20
# 1 / density of the models trained side by side.
RARITIES = (1.0, 1.2, 2.2, 2.4, 3.0, 3.5, 4.0, 5.0, 6.0, 10.0)
PLATEAU = RARITIES[2:7]
PAIRED = RARITIES[2:9]  # trained from antipodes too
FULL_N, FULL = 2 * M, (2.4, 3.5, 5.0, 10.0, 15.0, 24.0)
STEPS, BATCH = 6000, 256
Draw = Callable[[int], Tensor]


def samples(rarities: tuple[float, ...], n: int, *, size: int = BATCH, seed: int = 0) -> Draw:
    """Of a step: [rarities, size, n]."""
    density = 1 / torch.tensor(rarities)[:, None, None]

    def draw(step: int) -> Tensor:
        generator = generator_of(seed, step)
        x = torch.rand(len(rarities), size, n, generator=generator)
        return x * (torch.rand(x.shape, generator=generator) < density)

    return draw


def trained(
    rarities: tuple[float, ...], n: int, *, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """W [rarities, M, n] and the loss of each on fresh samples, [rarities]."""
    draw = samples(rarities, n)
    W, b = toy_models(draw, n, M, instances=len(rarities), steps=STEPS, lr=3e-3, start=start)
    return W, loss(W, b, samples(rarities, n, size=4096, seed=1)(0))


def loss(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    rebuilt = (x @ W.mT @ W + b[:, None]).relu()
    return (x - rebuilt).square().sum(2).mean(1)


def pairs(instances: int, n: int) -> Tensor:
    """W of 2 M features as antipodes, and next to nothing of the others: [instances, M, n]."""
    W = 0.01 * torch.randn(instances, M, n, generator=generator_of(0, 2))
    W[:, :, :M] += torch.eye(M)
    W[:, :, M : 2 * M] -= torch.eye(M)
    return W


def partners(W: Tensor) -> float:
    """Share of the features kept (norm above 1/2) that have an antipode (cosine below -0.9)."""
    rows = W.T[W.norm(dim=0) > 0.5]
    cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    return (cosines.amin(1) < -0.9).double().mean().item()


def run() -> Iterator[Measurement]:
    W, errors = trained(RARITIES, N)
    found = dict(zip(RARITIES, dimensions_per_feature(W).tolist(), strict=True))
    error = dict(zip(RARITIES, errors.tolist(), strict=True))
    yield Measurement("D* at density 1 and 0.83", (found[1.0], found[1.2]), "1", 0.97, 1.03)
    for rarity in (5.0, 6.0, 10.0):
        yield Measurement(f"D* at density {1 / rarity:.2g}", (found[rarity],))
    yield Measurement(
        "features with an antipode, density 0.33", (partners(W[RARITIES.index(3.0)]),)
    )
    W, errors = trained(PAIRED, N, start=pairs(len(PAIRED), N))
    kept = dict(zip(PAIRED, dimensions_per_feature(W).tolist(), strict=True))
    ratio = {r: e / error[r] for r, e in zip(PAIRED, errors.tolist(), strict=True)}
    plateau = tuple(kept[r] if ratio[r] < 1 else found[r] for r in PLATEAU)
    yield Measurement(
        "D* at density 0.45 to 0.25, lower loss of two starts", plateau, "1/2", 0.47, 0.53
    )
    yield Measurement("the same, random start only", tuple(found[r] for r in PLATEAU))
    stay = tuple(kept[r] for r in PAIRED if r > PLATEAU[0])
    yield Measurement("D* at density 0.42 to 0.17, started as antipodes", stay)
    for rarity in PAIRED[-3:]:
        what = f"loss of that start over the random one's, density {1 / rarity:.2g}"
        yield Measurement(what, (ratio[rarity],), high=1.0 if rarity in PLATEAU else None)
    W, _ = trained(FULL, FULL_N)
    sparse = tuple(dimensions_per_feature(W).tolist())
    yield Measurement("D* of 40 features at density 0.42 to 0.042", sparse, "1/2", 0.47, 0.53)


SOURCE = "Elhage et al. 2022, Toy models of superposition: a plot without figures"
TARGETS = [Target("elhage", SOURCE, run)]
