"""y = z W + noise: more features than dimensions, few active at once, all of them known."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.activations.source import Batch, Counts, Source, Split
from sae.errors import UserError
from sae_kernels.codes import Codes

HOOK = "world"
# Rows are drawn in runs of about this many (row, feature) pairs: one run's uniforms stay in cache.
PAIRS_PER_RUN = 2**20


class SparseSuperposition(Source):
    """Activations y = z W + noise of the hook `world`, with z sparse and non-negative.

    This is the model behind superposition in "From superposition to sparse codes" (Klindt et al.,
    arXiv 2503.01824) with the knobs of its published experiments. Everything is drawn on the CPU,
    so a block is the same on every device.

    Args:
        d_in: width of y.
        n_features: number of rows of W, each a random direction of norm 1.
        mean_active: how many features are active in a sample, on average.
        active: `bernoulli`: every feature fires on its own, so the number varies.
            `exact`: exactly `mean_active` fire, each still with its own frequency.
        frequency_exponent: frequency of feature i (from 1) is proportional to i^-exponent, scaled
            to `mean_active` in all and capped at 1; 0 makes all equally frequent.
        magnitudes: value of an active feature: `half_normal` is scale * |N(0, 1)|, `constant` is
            scale * |1 + spread * N(0, 1)|.
        scale: see `magnitudes`.
        spread: relative standard deviation of `constant` magnitudes.
        noise: standard deviation of Gaussian noise added to every dimension of y.
        dictionary_seed: of W; the seed a block is asked with draws samples only.

    Attributes:
        truth: the true dictionary W, float32 [n_features, d_in], rows of norm 1, on the CPU.
        frequencies: how often each feature is active, float64 [n_features].

    Raises:
        UserError: a setting is outside of its range.
    """

    def __init__(
        self,
        d_in: int = 64,
        n_features: int = 256,
        mean_active: float = 6.0,
        *,
        active: Literal["bernoulli", "exact"] = "bernoulli",
        frequency_exponent: float = 0.0,
        magnitudes: Literal["half_normal", "constant"] = "half_normal",
        scale: float = 1.0,
        spread: float = 0.0,
        noise: float = 0.0,
        dictionary_seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("d_in", d_in, 1),
            ("n_features", n_features, 1),
            ("frequency_exponent", frequency_exponent, 0),
            ("spread", spread, 0),
            ("noise", noise, 0),
        ):
            if not least <= value < math.inf:
                raise UserError(f"{name}={value} is out of range; give a finite number >= {least}")
        if not 0 < mean_active <= n_features:
            raise UserError(
                f"mean_active={mean_active} must be above 0 and at most n_features={n_features}"
            )
        if not 0 < scale < math.inf:
            raise UserError(f"scale={scale} must be a finite number above 0")
        if active not in ("bernoulli", "exact"):
            raise UserError(f"active={active!r} is not known; choose bernoulli or exact")
        if active == "exact" and mean_active != int(mean_active):
            raise UserError(
                f"mean_active={mean_active} must be a whole number with active=exact; "
                f"round it or use active=bernoulli"
            )
        if magnitudes not in ("half_normal", "constant"):
            raise UserError(
                f"magnitudes={magnitudes!r} is not known; choose half_normal or constant"
            )
        if spread and magnitudes != "constant":
            raise UserError(f"spread={spread} needs magnitudes=constant; with {magnitudes} it is 0")
        self.widths = {HOOK: d_in}
        self.d_in, self.n_features = d_in, n_features
        self.active, self.magnitudes = active, magnitudes
        self.scale, self.spread, self.noise = scale, spread, noise
        self.frequencies = _frequencies(n_features, mean_active, frequency_exponent)
        directions = torch.randn(n_features, d_in, generator=_generator(dictionary_seed))
        self.truth = torch.nn.functional.normalize(directions, dim=1)
        self._device = torch.device("cpu")
        self._handed_out: dict[int, int] = {}
        self._settings = {
            "d_in": d_in,
            "n_features": n_features,
            "mean_active": mean_active,
            "active": active,
            "frequency_exponent": frequency_exponent,
            "magnitudes": magnitudes,
            "scale": scale,
            "spread": spread,
            "noise": noise,
            "dictionary_seed": dictionary_seed,
        }

    def metadata(self) -> dict[str, Any]:
        """The arguments this world was made with."""
        return {"world": type(self).__name__, **self._settings}

    @property
    def counts(self) -> Counts:
        """Rows of the training blocks made so far; a world leaves none out."""
        return Counts(kept=sum(self._handed_out.values()))

    def setup(self, device: torch.device | str = "cpu") -> None:
        """Blocks come out on `device` from now on."""
        self._device = torch.device(device)

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        """`size` fresh samples; the two splits and any two indices are independent streams."""
        codes = self.codes(split, index, size, seed)
        if split == "train":
            self._handed_out[index] = size
        acts = embedding_bag(
            codes.indices,
            self.truth,
            codes.offsets,
            mode="sum",
            per_sample_weights=codes.values,
            include_last_offset=True,
        )
        if self.noise:
            generator = _generator(seed, _SPLITS[split], index, 1)
            acts += self.noise * torch.randn(acts.shape, generator=generator)
        # A sample is a document of one token: there is no order in a world, and no vocabulary.
        document = torch.arange(index * size, (index + 1) * size)
        nothing = torch.zeros(size, dtype=torch.int64)
        return Batch(
            acts={HOOK: acts.to(self._device)},
            document=document.to(self._device),
            position=nothing.to(self._device),
            token=nothing.to(self._device),
        )

    def codes(self, split: Split, index: int, size: int, seed: int) -> Codes:
        """The true z of `block` with the same arguments: ragged, indices rising in each row, on the
        CPU. For metrics only: nothing that learns may see it."""
        generator = _generator(seed, _SPLITS[split], index, 0)
        draw = self._exact if self.active == "exact" else self._bernoulli
        run = max(1, PAIRS_PER_RUN // self.n_features)
        counts, indices = [], []
        for start in range(0, size, run):
            active = draw(min(run, size - start), generator)
            counts.append(active.sum(1))
            indices.append(active.nonzero()[:, 1])
        offsets = torch.zeros(size + 1, dtype=torch.int64)
        torch.cumsum(torch.cat(counts), 0, out=offsets[1:])
        chosen = torch.cat(indices)
        values = torch.randn(len(chosen), generator=generator)
        if self.magnitudes == "constant":
            values.mul_(self.spread).add_(1)
        values.abs_().mul_(self.scale)
        return Codes(values=values, indices=chosen, d_sae=self.n_features, offsets=offsets)

    def _bernoulli(self, rows: int, generator: torch.Generator) -> Tensor:
        return torch.rand(rows, self.n_features, generator=generator) < self.frequencies

    def _exact(self, rows: int, generator: torch.Generator) -> Tensor:
        """Systematic sampling in a fresh random order for every row (Madow 1949): features are laid
        end to end with lengths p_i, and a comb of step 1 with a random start picks those it hits.
        Exactly sum(p) are picked, feature i with probability exactly p_i; with equal p every subset
        is equally likely. float64: the lengths must add up to the whole number."""
        order = torch.rand(rows, self.n_features, generator=generator).argsort(1)
        ends = self.frequencies[order].cumsum_(1)
        ends[:, -1] = round(self.frequencies.sum().item())
        teeth = (ends + torch.rand(rows, 1, generator=generator, dtype=torch.float64)).floor_()
        hit = teeth.diff(dim=1, prepend=torch.zeros(rows, 1, dtype=torch.float64)) > 0
        return torch.zeros_like(hit).scatter_(1, order, hit)


_SPLITS: dict[str, int] = {"train": 0, "held_out": 1}


def _generator(*key: int) -> torch.Generator:
    """A CPU generator for `key`; different keys give unrelated streams."""
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _frequencies(n: int, mean_active: float, exponent: float) -> Tensor:
    """p_i = min(1, c * i^-exponent) with c such that they add up to `mean_active`; float64 [n]."""
    weights = torch.arange(1, n + 1, dtype=torch.float64).pow(-exponent)
    # Weights fall, so the capped features are the first m: the fewest for which none exceeds 1.
    for capped in range(n):
        rest = weights[capped:]
        scaled = rest * ((mean_active - capped) / rest.sum())
        if scaled[0] <= 1:
            return torch.cat([torch.ones(capped, dtype=torch.float64), scaled])
    return torch.ones(n, dtype=torch.float64)
