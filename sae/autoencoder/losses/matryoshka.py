"""Matryoshka: nested prefixes of the dictionary all reconstruct (Bussmann et al. 2025)."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm
from sae.errors import UserError
from sae_kernels.decode_prefixes import decode_prefixes, matryoshka_levels

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class Matryoshka(LossTerm):
    """Mean over nested prefixes of FVU of the reconstruction from the latents below the prefix's
    end (2503.17547); the whole dictionary is always one. It takes FVU's place.

    Where each layer has latents of its own, a prefix is the same share of every layer's.

    Args:
        coefficient: weight in the loss.
        prefixes: their ends, ascending; the whole dictionary is added where it is missing.
        shares: the same as shares of d_sae; used where prefixes is left out.
        random: how many prefixes, the whole dictionary among them, are drawn anew at each step, in
            place of fixed ones; 0 for fixed ones.
        power: of the draw, without repeats: an end is at most m with chance (m / d_sae)^power, so
            that 1 is uniform. 0.5 is that of the first author to draw them (Nabeshima 2024).
        weights: of each prefix in the mean, shortest first; equal when left out.
        seed: of the draws, each of which is a function of it and of the number of the step.
    """

    coefficient: float = 1.0
    prefixes: tuple[int, ...] | None = None
    shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    random: int = 0
    power: float = 0.5
    weights: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prefixes", "shares", "weights"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        name = "model.losses Matryoshka"
        if self.prefixes is not None and not _ascending(0, *self.prefixes):
            raise UserError(f"{name}.prefixes={list(self.prefixes)} must be positive and ascending")
        if not _ascending(0, *self.shares) or not 0 < self.shares[-1] <= 1:
            raise UserError(
                f"{name}.shares={list(self.shares)} must ascend, above 0 and at most to 1"
            )
        if self.random < 0 or self.random == 1:
            raise UserError(
                f"{name}.random={self.random}; give at least 2, or 0 for fixed prefixes"
            )
        if self.random and self.prefixes is not None:
            raise UserError(
                f"{name}.random={self.random} draws prefixes anew and prefixes="
                f"{list(self.prefixes)} fixes them; leave out one"
            )
        if not self.power > 0:
            raise UserError(f"{name}.power={self.power} must be positive")
        if self.weights is not None and not all(w > 0 for w in self.weights):
            raise UserError(f"{name}.weights={list(self.weights)} must be positive")

    def check(self, sae: "SAE") -> None:
        name, d_sae = "model.losses Matryoshka", sae.d_sae
        if self.prefixes is not None and self.prefixes[-1] > d_sae:
            raise UserError(f"{name}.prefixes ends with {self.prefixes[-1]}, above d_sae={d_sae}")
        if self.random > d_sae:
            raise UserError(f"{name}.random={self.random} exceeds d_sae={d_sae}; lower it")
        if self.weights is not None and len(self.weights) != self.count(d_sae):
            raise UserError(
                f"{name}.weights has {len(self.weights)} numbers for {self.count(d_sae)} prefixes, "
                "the whole dictionary among them; give one for each"
            )

    def ends(self, d_sae: int) -> list[int]:
        """Ends of the fixed prefixes."""
        given = self.prefixes or [max(1, round(share * d_sae)) for share in self.shares]
        return sorted({*given, d_sae})

    def count(self, d_sae: int) -> int:
        """How many prefixes there are."""
        return self.random or len(self.ends(d_sae))

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae = forward.sae
        squares = decode_prefixes(
            forward.codes, self.levels(forward), self.count(sae.d_sae), sae.W_dec, sae.b_dec,
            forward.target, backend=forward.backend,
        )  # fmt: skip
        if self.weights is None:
            return squares.mean() / forward.variance
        weighted = sum(w * s for w, s in zip(self.weights, squares.unbind(), strict=True))
        return weighted / sum(self.weights) / forward.variance

    def levels(self, forward: ForwardOutput) -> Tensor:
        """The first prefix that has the latent, of every slot of the codes."""
        sae, codes, places = forward.sae, forward.codes, forward.codes.indices
        groups = sae.site.groups
        if groups > 1:
            size = sae.d_sae // groups
            places = places % size * groups + places // size
        if not self.random:
            ends = self.ends(sae.d_sae)
            return matryoshka_levels(replace(codes, indices=places, _pairs=None), ends)
        ends = drawn_ends(sae.d_sae, self.random, self.power, self.seed, forward.step)
        return torch.bucketize(places.contiguous(), ends, right=True)


def _ascending(*numbers: float) -> bool:
    return len(numbers) > 1 and all(low < high for low, high in pairwise(numbers))


def drawn_ends(d_sae: int, n: int, power: float, seed: int, step: Tensor) -> Tensor:
    """Ends of the first n - 1 of n prefixes, ascending, drawn from 1..d_sae - 1 without repeats: m
    with weight m^power - (m - 1)^power. `step` is 0-d and on the device, where the draw is made,
    so that a recorded step draws anew.
    """
    ends = torch.arange(d_sae, device=step.device)
    chances = (ends / d_sae).double().pow(power).diff()
    # The first of clocks that ring at these rates is each end in proportion to its chance.
    words = _mixed(_mixed(_mixed(seed) ^ step) ^ ends[1:])
    rings = -((words + 0.5) / 2**32).double().log() / chances
    return rings.topk(n - 1, largest=False).indices.sort().values + 1


def _mixed(word):
    """A number below 2^32, or a tensor of them, scrambled (a hash of the murmur kind). No product
    reaches 2^63."""
    word = word & 0xFFFFFFFF
    word = (word ^ (word >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
    word = (word ^ (word >> 12)) * 0x297A2D39 & 0xFFFFFFFF
    return word ^ (word >> 15)
