"""Count how often each latent fires over a set of activations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae.files import write_text
from sae_kernels.codes import Codes


class Firing:
    """Counts of how often each latent fires, and the metrics that derive from them.

    A latent fires on a token when its value is not 0; an empty slot of a `Codes` never counts.
    """

    def __init__(self, d_sae: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self.counts = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def update(self, codes: Codes) -> None:
        """Add a batch without waiting for the device."""
        self.tokens += codes.batch
        active = (codes.values != 0).flatten().long()
        self.counts.index_add_(0, codes.indices.flatten(), active)

    def density(self) -> Tensor:
        """Return the share of tokens on which each latent fires, float64 [d_sae]."""
        return self.counts.double() / max(self.tokens, 1)

    def l0(self) -> float:
        """Return the mean number of latents that fire on a token."""
        return self.counts.sum().item() / max(self.tokens, 1)

    def never_fired_fraction(self) -> float:
        """Return the share of latents that fired on no token of this set.

        It falls as the set grows, so it differs from the dead fraction of training, which has its
        own window.
        """
        return (self.counts == 0).double().mean().item()

    def save(self, path: str | Path) -> None:
        """Write `{"tokens": int, "fired": [int] * d_sae}` as JSON, atomically."""
        write_text(path, json.dumps({"tokens": self.tokens, "fired": self.counts.tolist()}))

    @classmethod
    def load(cls, path: str | Path) -> Firing:
        """Return the counts that `save` wrote."""
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        firing = cls(len(data["fired"]))
        firing.tokens = data["tokens"]
        firing.counts = torch.tensor(data["fired"], dtype=torch.int64)
        return firing


@dataclass(frozen=True)
class DensityHistogram:
    """Histogram of latents by log10 of their density.

    Bin i holds edges[i] <= log10(density) < edges[i + 1]; the last bin includes its upper edge 0, a
    latent that always fires. Latents that never fired have no logarithm and are counted apart.

    Attributes:
        edges: [bins + 1].
        counts: [bins].
        never_fired: number of latents.
    """

    edges: Tensor
    counts: Tensor
    never_fired: int


def density_histogram(firing: Firing, bins_per_decade: int = 5) -> DensityHistogram:
    """Return the histogram from the lowest density the set can show, 1 / tokens, up to 1."""
    fired = firing.density()[firing.counts > 0].log10().cpu()
    decades = max(1, len(str(max(firing.tokens - 1, 1))))
    edges = torch.linspace(-decades, 0, decades * bins_per_decade + 1, dtype=torch.float64)
    # `right` puts a density on an edge into the bin above it, as documented.
    index = torch.bucketize(fired, edges, right=True) - 1
    counts = torch.bincount(index.clamp(0, len(edges) - 2), minlength=len(edges) - 1)
    return DensityHistogram(edges, counts, int((firing.counts == 0).sum()))
