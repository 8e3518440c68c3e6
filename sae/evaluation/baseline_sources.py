"""Baselines of an evaluation: noise, a model with random weights, a frozen decoder.

A metric of an SAE means something only above what it reaches on a baseline:

- `RANDOM_WEIGHTS`: the model has random weights (Heap et al., arXiv 2501.17727: many scores are as
  high there).
- `GAUSSIAN`: the activations are Gaussian noise with the same mean and covariance.
- `FROZEN_DECODER`: the decoder keeps its random directions and only the encoder learns (Korznikov
  et al., arXiv 2602.14111: FVU and interpretability come close to a trained dictionary's).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.activations import Batch, Source, Split
from sae.training import OptimConfig

RANDOM_WEIGHTS, GAUSSIAN, FROZEN_DECODER = "random_weights", "gaussian", "frozen_decoder"
_SPLITS: dict[str, int] = {"train": 0, "held_out": 1}


def frozen_decoder(optim: OptimConfig) -> OptimConfig:
    """Return optimizer settings under which W_dec keeps its random unit directions.

    Resampling must be off, because it would write to W_dec.
    """
    return dataclasses.replace(optim, lr_factors={**optim.lr_factors, "W_dec": 0.0})


class MatchedGaussian(Source):
    """Gaussian activations with the mean and covariance of another source, over all its hooks.

    They have no features, but everything that depends on mean and covariance alone, such as the
    FVU of PCA, is the same. A block is a pure function of (split, index, size, seed) and of the
    rows on which mean and covariance were measured.

    Args:
        source: the source to match, by its first training block.
        rows: size of that block. The size of the stream's own blocks saves a harvest if blocks are
            cached.
        seed: seed of that block.

    Attributes:
        mean: [width], of all hooks side by side in the order of `widths`; set by `setup`.
        covariance: [width, width]; set by `setup`.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, source: Source, *, rows: int = 16_384, seed: int = 0) -> None:
        self.source, self.rows, self.seed = source, rows, seed
        self._root: Tensor | None = None

    def setup(self, device: torch.device | str = "cpu") -> None:
        """Set up the matched source and measure it; a second call does nothing."""
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
        assert self._root is not None
        # numpy's generator, because worlds and initial weights draw from torch's with small seeds.
        generator = np.random.default_rng((seed, _SPLITS[split], index))
        noise = torch.from_numpy(generator.standard_normal((size, len(self.mean))))
        x = (self.mean + noise @ self._root).to(self._dtype)
        parts = x.split(list(self.widths.values()), dim=1)
        return Batch(dict(zip(self.widths, parts, strict=True))).to(self._device)

    def metadata(self) -> dict[str, Any]:
        """Return what was matched."""
        return {"gaussian_like": self.source.metadata(), "rows": self.rows}
