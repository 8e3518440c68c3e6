"""Matryoshka: every one of several nested dictionaries reconstructs (Bussmann et al. 2025)."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm
from sae.errors import UserError
from sae_kernels.decode_prefixes import decode_prefixes, matryoshka_levels

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class Matryoshka(LossTerm):
    """The mean FVU of the reconstructions from nested prefixes of the latents (2503.17547).

    The full dictionary is always one of the prefixes. This term replaces FVU. In a cross-layer
    transcoder, a prefix takes the same share of the latents of every layer.

    Args:
        coefficient: Weight in the loss.
        prefixes: Their ends, ascending; the full dictionary is added if it is missing.
        shares: The same as shares of d_sae; used if prefixes is not given.
        random: Number of prefixes, the full dictionary included, to draw at each step instead of
            fixed ones; 0 for fixed ones.
        power: Ends are drawn without repeats, so that an end is at most m with probability
            (m / d_sae)^power; 1 is uniform. Nabeshima (2024), who first drew them, uses 0.5.
        weights: Weight of each prefix in the mean, shortest first; equal by default.
        seed: Seed of the draws; a draw depends only on it and on the number of the step.
    """

    coefficient: float = 1.0
    prefixes: tuple[int, ...] | None = None
    shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    random: int = 0
    power: float = 0.5
    weights: tuple[float, ...] | None = None
    seed: int = 0

    full_decoder_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "model.losses Matryoshka"
        if self.prefixes is not None and not _ascending(0, *self.prefixes):
            raise UserError(f"{name}.prefixes={list(self.prefixes)} must be positive and ascending")
        if not _ascending(0, *self.shares) or not 0 < self.shares[-1] <= 1:
            raise UserError(
                f"{name}.shares={list(self.shares)} must be ascending, above 0 and at most 1"
            )
        if self.random < 0 or self.random == 1:
            raise UserError(
                f"{name}.random={self.random}; give at least 2, or 0 for fixed prefixes"
            )
        if self.random and self.prefixes is not None:
            raise UserError(
                f"{name}.random={self.random} and prefixes={list(self.prefixes)} are mutually "
                "exclusive; leave one out"
            )
        if not self.power > 0:
            raise UserError(f"{name}.power={self.power} must be positive")
        if self.weights is not None and not all(w > 0 for w in self.weights):
            raise UserError(f"{name}.weights={list(self.weights)} must be positive")

    def check(self, sae: "SAE") -> None:
        name, d_sae = "model.losses Matryoshka", sae.d_sae
        if self.prefixes is not None and self.prefixes[-1] > d_sae:
            raise UserError(
                f"{name}.prefixes ends with {self.prefixes[-1]}, above d_sae={d_sae}; lower it"
            )
        if self.random > d_sae:
            raise UserError(f"{name}.random={self.random} exceeds d_sae={d_sae}; lower it")
        if self.weights is not None and len(self.weights) != self.count(d_sae):
            raise UserError(
                f"{name}.weights has {len(self.weights)} numbers for {self.count(d_sae)} prefixes, "
                "the full dictionary included; give one for each"
            )

    def ends(self, d_sae: int) -> list[int]:
        """Return the ends of the fixed prefixes."""
        given = self.prefixes or [max(1, round(share * d_sae)) for share in self.shares]
        return sorted({*given, d_sae})

    def count(self, d_sae: int) -> int:
        """Return the number of prefixes."""
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
        """Return, for every slot of the codes, the first prefix that contains its latent."""
        sae, codes, positions = forward.sae, forward.codes, forward.codes.indices
        groups = sae.site.groups
        if groups > 1:
            size = sae.d_sae // groups
            positions = positions % size * groups + positions // size
        if not self.random:
            ends = self.ends(sae.d_sae)
            return matryoshka_levels(replace(codes, indices=positions, _pairs=None), ends)
        ends = drawn_ends(sae.d_sae, self.random, self.power, self.seed, forward.step)
        return torch.bucketize(positions.contiguous(), ends, right=True)


def _ascending(*numbers: float) -> bool:
    return len(numbers) > 1 and all(low < high for low, high in pairwise(numbers))


def drawn_ends(d_sae: int, n: int, power: float, seed: int, step: Tensor) -> Tensor:
    """Draw the ends of the first n - 1 of n prefixes, ascending, from 1..d_sae - 1 without repeats.

    m has weight m^power - (m - 1)^power. `step` is 0-d and on the device, where the draw is made,
    so that a step recorded in a CUDA graph draws anew.
    """
    ends = torch.arange(d_sae, device=step.device)
    rates = (ends / d_sae).double().pow(power).diff()
    # Exponential clocks with these rates: which one rings first follows these probabilities.
    words = _mixed(_mixed(_mixed(seed) ^ step) ^ ends[1:])
    rings = -((words + 0.5) / 2**32).double().log() / rates
    return rings.topk(n - 1, largest=False).indices.sort().values + 1


def _mixed(word):
    """Hash a number below 2^32, or a tensor of them, as murmur does; no product reaches 2^63."""
    word = word & 0xFFFFFFFF
    word = (word ^ (word >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
    word = (word ^ (word >> 12)) * 0x297A2D39 & 0xFFFFFFFF
    return word ^ (word >> 15)
