"""Magnitudes: distributions of the values of active features."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Magnitudes(ABC):
    """A distribution of values that are drawn independently of each other.

    Args:
        signed: give every value a random sign; otherwise all values are positive.
    """

    signed: bool = False

    @abstractmethod
    def sizes(self, count: int, generator: Generator) -> Tensor:
        """Draw absolute values, float32 [count]."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw values, float32 [count]."""
        values = self.sizes(count, generator)
        if self.signed:
            values *= 1 - 2 * torch.randint(2, (count,), generator=generator)
        return values


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be a finite number above 0")


@dataclass(frozen=True, kw_only=True)
class HalfNormal(Magnitudes):
    """Values scale * |N(0, 1)|: many are small, which is hard for a linear encoder."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    def sizes(self, count: int, generator: Generator) -> Tensor:
        return torch.randn(count, generator=generator).abs_().mul_(self.scale)


@dataclass(frozen=True, kw_only=True)
class Constant(Magnitudes):
    """Values scale * |1 + spread * N(0, 1)|."""

    scale: float = 1.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        _positive("scale", self.scale)
        if not 0 <= self.spread < math.inf:
            raise UserError(f"spread={self.spread} is out of range; give a finite number >= 0")

    def sizes(self, count: int, generator: Generator) -> Tensor:
        values = torch.randn(count, generator=generator).mul_(self.spread).add_(1)
        return values.abs_().mul_(self.scale)


@dataclass(frozen=True, kw_only=True)
class Uniform(Magnitudes):
    """Values from the uniform distribution on (low, high]."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high < math.inf:
            raise UserError(f"low={self.low}, high={self.high} must satisfy 0 <= low < high")

    def sizes(self, count: int, generator: Generator) -> Tensor:
        return self.high - (self.high - self.low) * torch.rand(count, generator=generator)
