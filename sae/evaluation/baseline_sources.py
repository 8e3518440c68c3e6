"""What a figure must beat: the same recipe where there is nothing to find, or nothing was learnt.

A control is a source or a setting, and whoever trains puts it in place of the run's own:
`RANDOM_WEIGHTS` a network that never learnt (Heap et al., arXiv 2501.17727: many scores are as
high there), `GAUSSIAN` activations of the same mean and covariance and no other structure, and
`FROZEN_DECODER` random directions that only the encoder learns to use (Korznikov et al., arXiv
2602.14111: FVU and interpretability come close to a trained dictionary's). A figure's headline is
what it has above them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sae.activations import Batch, Source, Split

RANDOM_WEIGHTS, GAUSSIAN, FROZEN_DECODER = "random_weights", "gaussian", "frozen_decoder"
_SPLITS: dict[str, int] = {"train": 0, "held_out": 1}
Optim = TypeVar("Optim")


def frozen_decoder(optim: Optim) -> Optim:
    """Settings of the optimiser, a dataclass with `lr_factors`, under which W_dec stays as it
    starts: random unit directions. Resampling must be off, which would write to it."""
    return dataclasses.replace(optim, lr_factors={**optim.lr_factors, "W_dec": 0.0})


def random_weights(source: Source, *, seed: int = 0) -> Source | None:
    """The same text through the same architecture with weights that never learnt; None where no
    model is read."""
    return source.random_weights_twin(seed)


class MatchedGaussian(Source):
    """Gaussian activations with the mean and covariance of another source's, over all its hooks.

    Whatever depends on these two alone, such as the FVU of PCA, is the same; there are no features.
    A block is a function of (split, index, size, seed) and of the rows looked at.

    Args:
        source: what is matched, by its first training block.
        rows: of that block. As many as the stream's own spare a harvest where blocks are cached.
        seed: of that block.

    Attributes (after `setup`):
        mean: [width], of all hooks side by side in the order of `widths`.
        covariance: [width, width].
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, source: Source, *, rows: int = 16_384, seed: int = 0) -> None:
        self.source, self.rows, self.seed = source, rows, seed
        self._root: Tensor | None = None

    def setup(self, device: torch.device | str = "cpu") -> None:
        """Set up the source and measure it; a second call does nothing."""
        if self._root is not None:
            return
        self.source.setup(device)
        self.widths = dict(self.source.widths)
        acts = self.source.block("train", 0, self.rows, self.seed).acts
        x = torch.cat([acts[hook].double().cpu() for hook in self.widths], dim=1)
        self.mean = x.mean(0)
        self.covariance = (x - self.mean).T @ (x - self.mean) / len(x)
        values, vectors = torch.linalg.eigh(self.covariance)
        self._root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        self._device, self._dtype = torch.device(device), next(iter(acts.values())).dtype

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        """Return fresh draws, independent of each other."""
        self.setup()
        # Not torch's generator: worlds and starts draw from it with small seeds too.
        generator = np.random.default_rng((seed, _SPLITS[split], index))
        noise = torch.from_numpy(generator.standard_normal((size, len(self.mean))))
        x = (self.mean + noise @ self._root).to(self._dtype)
        parts = x.split(list(self.widths.values()), dim=1)
        return Batch(dict(zip(self.widths, parts, strict=True))).to(self._device)

    def metadata(self) -> dict[str, Any]:
        return {"gaussian_like": self.source.metadata(), "rows": self.rows}
