"""What the latents do over an evaluation set: how many fire, how often, and which never."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae.files import write_text
from sae_kernels.codes import Codes


class Firing:
    """Counts how often each latent fires; every figure below derives from these counts.

    A latent fires on a token when its value is not 0; an empty slot of a `Codes` never counts.
    """

    def __init__(self, d_sae: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self.counts = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def update(self, codes: Codes) -> None:
        """Add a batch. Never waits for the device."""
        self.tokens += codes.batch
        active = (codes.values != 0).flatten().long()
        self.counts.index_add_(0, codes.indices.flatten(), active)

    def density(self) -> Tensor:
        """Share of tokens on which each latent fires, float64 [d_sae]."""
        return self.counts.double() / max(self.tokens, 1)

    def l0(self) -> float:
        """Mean number of latents that fire on a token."""
        return self.counts.sum().item() / max(self.tokens, 1)

    def never_fired_fraction(self) -> float:
        """Share of latents that fired on no token of this set.

        Falls as the set grows, so it is not the dead share of training, whose window is its own.
        """
        return (self.counts == 0).double().mean().item()

    def save(self, path: str | Path) -> None:
        """Write `{"tokens": int, "fired": [int] * d_sae}` as JSON, atomically."""
        write_text(path, json.dumps({"tokens": self.tokens, "fired": self.counts.tolist()}))

    @classmethod
    def load(cls, path: str | Path) -> Firing:
        """Read what `save` wrote."""
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        firing = cls(len(data["fired"]))
        firing.tokens = data["tokens"]
        firing.counts = torch.tensor(data["fired"], dtype=torch.int64)
        return firing


@dataclass(frozen=True)
class DensityHistogram:
    """Latents by log10 of their density: bin i holds edges[i] <= log10(density) < edges[i + 1].

    edges [bins + 1], counts [bins]; `never_fired` latents have no logarithm and stand apart. The
    last bin ends at 0 (a latent that always fires) and includes it.
    """

    edges: Tensor
    counts: Tensor
    never_fired: int


def density_histogram(firing: Firing, bins_per_decade: int = 5) -> DensityHistogram:
    """Histogram from the lowest density the set can show, 1 / tokens, up to 1."""
    fired = firing.density()[firing.counts > 0].log10().cpu()
    decades = max(1, len(str(max(firing.tokens - 1, 1))))
    edges = torch.linspace(-decades, 0, decades * bins_per_decade + 1, dtype=torch.float64)
    # `right` puts a density that lies on an edge into the bin it opens, as the docstring says.
    index = torch.bucketize(fired, edges, right=True) - 1
    counts = torch.bincount(index.clamp(0, len(edges) - 2), minlength=len(edges) - 1)
    return DensityHistogram(edges, counts, int((firing.counts == 0).sum()))
