"""Latents of the nonlinear world: distributions of z and of its class."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from sae.errors import UserError
from sae.worlds.magnitudes import HalfNormal, Magnitudes, Uniform
from sae.worlds.support import Active, Exact
from sae.worlds.world import draw_codes


class Latents(ABC):
    """A joint distribution of latents z [n_features] and a class."""

    n_features: int

    @property
    def expected_scale(self) -> float | None:
        """The scale of the linear map from representation to z if theory gives one."""
        return None

    @abstractmethod
    def class_vectors(self, classes: int, generator: Generator) -> Tensor:
        """Draw the vectors that distinguish the classes, float32 [classes, n_features]."""

    @abstractmethod
    def draw(self, size: int, vectors: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw z, float32 [size, n_features], and its classes, int64 [size]."""

    def out_of_distribution(self) -> Self | None:
        """Return a distribution of combinations that never occur in this one, or None."""
        return None


def _unit(classes: int, n: int, generator: Generator) -> Tensor:
    return normalize(torch.randn(classes, n, generator=generator), dim=1)


@dataclass(frozen=True, kw_only=True)
class SparseLatents(Latents):
    """Sparse z, as in the linear world.

    The class is c with probability softmax_c(sharpness * <v_c, z>), with random unit vectors v_c.

    Args:
        n_features: number of latents.
        active: distribution of the active latents.
        magnitudes: distribution of their values.
        sharpness: how much z determines its class. If it does so completely, a network has no
            reason to represent anything else about z.
    """

    n_features: int = 16
    active: Active = Exact(mean_active=3)  # noqa: RUF009 (frozen)
    magnitudes: Magnitudes = Uniform(low=0.25, high=2.0)  # noqa: RUF009
    sharpness: float = 4.0

    def __post_init__(self) -> None:
        _check(self.n_features, "sharpness", self.sharpness)
        self.active.frequencies(self.n_features)

    def class_vectors(self, classes: int, generator: Generator) -> Tensor:
        return _unit(classes, self.n_features, generator)

    def draw(self, size: int, vectors: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        z = draw_codes(self.active, self.magnitudes, self.n_features, size, generator).to_dense()
        # The argmax of logits plus Gumbel noise is a draw from their softmax.
        uniform = torch.rand(size, len(vectors), generator=generator).clamp_(1e-12, 1 - 1e-7)
        return z, (self.sharpness * z @ vectors.T - uniform.log().neg().log()).argmax(1)

    def out_of_distribution(self) -> Self | None:
        active = self.active.out_of_distribution()
        return None if active is None else replace(self, active=active)


@dataclass(frozen=True, kw_only=True)
class SphereLatents(Latents):
    """z on the unit sphere around the vector of its class (von Mises-Fisher distribution).

    The density is proportional to exp(kappa * <v_c, z>), and classes are equally likely. This
    satisfies the assumptions of the theorem of Reizinger et al. (arXiv 2410.21869).

    Args:
        n_features: dimensions of z.
        kappa: concentration.
    """

    n_features: int = 5
    kappa: float = 10.0

    def __post_init__(self) -> None:
        _check(self.n_features, "kappa", self.kappa)

    @property
    def expected_scale(self) -> float:
        return self.kappa

    def class_vectors(self, classes: int, generator: Generator) -> Tensor:
        return _unit(classes, self.n_features, generator)

    def draw(self, size: int, vectors: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(vectors), (size,), generator=generator)
        along = self._cosines(size, generator)
        mean = vectors[labels]
        across = torch.randn(size, self.n_features, generator=generator)
        across -= (across * mean).sum(1, keepdim=True) * mean
        rest = (1 - along.square()).clamp(min=0).sqrt()
        z = along[:, None] * mean + rest[:, None] * normalize(across, dim=1)
        return normalize(z, dim=1), labels

    def _cosines(self, size: int, generator: Generator) -> Tensor:
        """Draw cosines with the mean direction [size] by rejection sampling (Wood 1994)."""
        d, kappa = self.n_features - 1, self.kappa
        b = d / (2 * kappa + math.sqrt(4 * kappa**2 + d**2))
        x0 = (1 - b) / (1 + b)
        c = kappa * x0 + d * math.log(1 - x0**2)
        accepted, missing = [], size
        while missing:
            # Beta(d/2, d/2) from two sums of d squared normals.
            sums = torch.randn(2, 2 * missing, d, generator=generator, dtype=torch.float64)
            first, second = sums.square().sum(2)
            beta = first / (first + second)
            w = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
            u = torch.rand(len(w), generator=generator, dtype=torch.float64)
            accepted.append(w[kappa * w + d * torch.log(1 - x0 * w) - c >= u.log()][:missing])
            missing -= len(accepted[-1])
        return torch.cat(accepted).float()


@dataclass(frozen=True, kw_only=True)
class PrototypeLatents(Latents):
    """z is the sparse prototype of its class plus Gaussian noise.

    If classes are far apart, a network needs to represent only the class. Identification of the
    latents then fails, as it should.

    Args:
        n_features: number of latents.
        active: distribution of the active latents of a prototype.
        magnitudes: distribution of their values.
        spread: standard deviation of the noise.
    """

    n_features: int = 16
    active: Active = Exact(mean_active=3)  # noqa: RUF009 (frozen)
    magnitudes: Magnitudes = HalfNormal()  # noqa: RUF009
    spread: float = 0.15

    def __post_init__(self) -> None:
        _check(self.n_features, "spread", self.spread)
        self.active.frequencies(self.n_features)

    def class_vectors(self, classes: int, generator: Generator) -> Tensor:
        codes = draw_codes(self.active, self.magnitudes, self.n_features, classes, generator)
        return codes.to_dense()

    def draw(self, size: int, vectors: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(vectors), (size,), generator=generator)
        noise = torch.randn(size, self.n_features, generator=generator)
        return vectors[labels] + self.spread * noise, labels


def _check(n_features: int, name: str, value: float) -> None:
    if n_features < 2:
        raise UserError(f"n_features={n_features} is out of range; give at least 2")
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be a finite number above 0")
