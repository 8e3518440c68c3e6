"""The linear world y = z W + noise: known features, a few of them active at once."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Generator, Tensor
from torch.nn.functional import embedding_bag

from sae.activations.batch import Batch, PositionCounts, Split
from sae.activations.capabilities import KnownFeatures
from sae.activations.source import Source
from sae.errors import UserError
from sae.worlds.cache import cached
from sae.worlds.directions import Directions, Random
from sae.worlds.magnitudes import HalfNormal, Magnitudes
from sae.worlds.seeding import SPLITS, generator_of
from sae.worlds.support import Active, Bernoulli, Sampler
from sae_kernels.codes import Codes

HOOK = "world"
# Rows are drawn in runs of about this many (row, feature) pairs: one run's uniforms stay in cache.
PAIRS_PER_RUN = 2**20


class World(Source):
    """A world with activations y = z W + noise at the hook `world`, where z is sparse.

    This is the model of superposition in "From superposition to sparse codes" (Klindt et al.,
    arXiv 2503.01824). A world combines three independent choices: which features are active, how
    large their values are, and where they point. Everything is drawn on the CPU, so a block is the
    same on every device.

    Args:
        d_in: width of y.
        n_features: number of rows of W.
        active: which features are active in a sample: Bernoulli, Exact, FirstCopula, LowRankCopula,
            DenseCopula, Hierarchy, Compositional.
        magnitudes: value of an active feature: HalfNormal, Constant, Uniform.
        directions: the rows of W: Random, Orthogonal, Coherent, ToyModel.
        noise: standard deviation of Gaussian noise added to every dimension of y.
        dictionary_seed: seed of W; the seed of a block draws samples only.

    Attributes:
        frequencies: probability that each feature is active, float64 [n_features].
        parents: for each feature the one without which it is never active, -1 for none, int64
            [n_features]; None without a hierarchy.

    Raises:
        UserError: A setting is out of range, or does not fit the others.
    """

    def __init__(
        self,
        d_in: int = 64,
        n_features: int = 256,
        active: Active = Bernoulli(),  # noqa: B008 (frozen)
        magnitudes: Magnitudes = HalfNormal(),  # noqa: B008
        directions: Directions = Random(),  # noqa: B008
        *,
        noise: float = 0.0,
        dictionary_seed: int = 0,
    ) -> None:
        for name, value, least in (("d_in", d_in, 1), ("n_features", n_features, 1)):
            if value < least:
                raise UserError(f"{name}={value} is out of range; give at least {least}")
        if not 0 <= noise < math.inf:
            raise UserError(f"noise={noise} is out of range; give a finite number >= 0")
        directions.check(n_features, d_in)
        self.widths = {HOOK: d_in}
        self.d_in, self.n_features = d_in, n_features
        self.active, self.magnitudes, self.directions = active, magnitudes, directions
        self.noise, self.dictionary_seed = noise, dictionary_seed
        self.frequencies = active.frequencies(n_features)
        self.parents = active.parents(n_features)
        self._draw = active.sampler(n_features)
        self._branch: tuple[int, ...] = ()
        self._device = torch.device("cpu")
        self._handed_out: dict[int, int] = {}

    @cached_property
    def truth(self) -> Tensor:
        """The true dictionary W, float32 [n_features, d_in] on the CPU.

        Rows have norm 1, except learned ones (`ToyModel`).
        """
        if self.directions.learned:
            make = lambda: {"W": self._rows()}
            return cached(self.metadata(), make, "training the toy model of this world")["W"]
        return self._rows()

    def _rows(self) -> Tensor:
        seed = self.dictionary_seed
        samples = lambda size, step: self._codes(size, (seed, len(SPLITS), step)).to_dense()
        return self.directions.rows(self.n_features, self.d_in, seed, samples)

    def known_features(self) -> KnownFeatures:
        return cast(KnownFeatures, self)  # pyright does not match cached_property with a property

    def out_of_distribution(self) -> Self | None:
        """Return this world with combinations of features that never occur in it.

        Its samples are independent of this world's. None if every combination occurs here.
        """
        active = self.active.out_of_distribution()
        if active is None:
            return None
        self.truth  # noqa: B018 (computed once for both: it may be learned from samples in distribution)
        other = copy.copy(self)
        other.active, other._branch, other._handed_out = active, (1,), {}
        other.frequencies = active.frequencies(self.n_features)
        other._draw = active.sampler(self.n_features)
        return other

    def metadata(self) -> dict[str, Any]:
        """Return the settings of this world."""
        return {
            "world": type(self).__name__,
            "d_in": self.d_in,
            "n_features": self.n_features,
            "active": described(self.active),
            "magnitudes": described(self.magnitudes),
            "directions": described(self.directions),
            "noise": self.noise,
            "dictionary_seed": self.dictionary_seed,
        }

    @property
    def counts(self) -> PositionCounts:
        """Number of rows in the training blocks made so far; a world leaves none out."""
        return PositionCounts(kept=sum(self._handed_out.values()))

    def setup(self, device: torch.device | str = "cpu") -> None:
        """Return blocks on `device` from now on."""
        self._device = torch.device(device)

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        """Return `size` new samples; splits and indices are independent of each other."""
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
            generator = generator_of(seed, SPLITS[split], index, 1, *self._branch)
            acts += self.noise * torch.randn(acts.shape, generator=generator)
        return Batch({HOOK: acts.to(self._device)})

    def codes(self, split: Split, index: int, size: int, seed: int) -> Codes:
        """Return the true z of `block` with the same arguments.

        The codes are ragged and on the CPU, with increasing indices in each row. They are for
        metrics only: nothing that learns may see them.
        """
        return self._codes(size, (seed, SPLITS[split], index, 0, *self._branch))

    def _codes(self, size: int, key: tuple[int, ...]) -> Codes:
        return draw_codes(
            self.active, self.magnitudes, self.n_features, size, generator_of(*key), self._draw
        )


def draw_codes(
    active: Active,
    magnitudes: Magnitudes,
    n: int,
    size: int,
    generator: Generator,
    sampler: Sampler | None = None,
) -> Codes:
    """Draw sparse codes of `size` samples of n features.

    The codes are ragged, with increasing indices in each row. `sampler` is `active.sampler(n)`;
    pass it to save time when drawing often.
    """
    draw = active.sampler(n) if sampler is None else sampler
    run = max(1, PAIRS_PER_RUN // n)
    counts, indices = [], []
    for start in range(0, size, run):
        mask = draw(min(run, size - start), generator)
        counts.append(mask.sum(1))
        indices.append(mask.nonzero()[:, 1])
    offsets = torch.zeros(size + 1, dtype=torch.int64)
    torch.cumsum(torch.cat(counts), 0, out=offsets[1:])
    flat = torch.cat(indices)
    codes = Codes(magnitudes.draw(len(flat), generator), flat, n, offsets)
    if active.scaled_by_parent:
        parents = active.parents(n)
        assert parents is not None, "only a hierarchy scales values by parents"
        _scale_by_parent(codes, parents)
    return codes


def _scale_by_parent(codes: Codes, parents: Tensor) -> None:
    """Multiply the value of every feature by that of its parent, roots first, in place."""
    assert codes.offsets is not None
    rows = torch.repeat_interleave(codes.offsets.diff()) * codes.d_sae
    slots = rows + codes.indices  # increasing: rows are in order, and indices increase in each row
    parent = parents[codes.indices]
    level = torch.zeros_like(parents)
    for feature, above in enumerate(parents.tolist()):  # a parent has the lower index
        level[feature] = level[above] + 1 if above >= 0 else 0
    for depth in range(1, int(level.max()) + 1):
        children = (level[codes.indices] == depth).nonzero()[:, 0]
        at = torch.searchsorted(slots, rows[children] + parent[children])
        codes.values[children] *= codes.values[at]


def described(part: Any) -> dict[str, Any]:
    """Return the class and the settings of a dataclass, and of those inside it, as plain data."""
    settings = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {
        "class": type(part).__name__,
        **{k: described(v) if dataclasses.is_dataclass(v) else v for k, v in settings.items()},
    }
