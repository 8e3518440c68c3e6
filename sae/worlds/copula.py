"""Features that fire together more, or less, often than chance: Gaussian copulas."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sae.errors import UserError
from sae.worlds.seeding import generator_of
from sae.worlds.support import Frequent, Sampler


@dataclass(frozen=True, kw_only=True)
class Copula(Frequent):
    """Feature i is active where a standard normal variable u_i lies below the p_i-quantile; the u_i
    are jointly normal, so every frequency stays what it is. Correlations named here are those of u;
    the activities' own are smaller."""

    @abstractmethod
    def factor(self, n: int) -> tuple[Tensor, Tensor]:
        """A [r, n] and s [n], float64: u = e A + s * f with e, f standard normal."""

    def correlation(self, n: int) -> Tensor:
        """Of u, float64 [n, n]."""
        A, own = self.factor(n)
        return A.T @ A + own.square().diag()

    def sampler(self, n: int) -> Sampler:
        below = torch.special.ndtri(self.frequencies(n))
        A, own = (part.float() for part in self.factor(n))

        def draw(rows: int, generator: Generator) -> Tensor:
            u = torch.randn(rows, len(A), generator=generator) @ A
            if own.any():
                u.addcmul_(own, torch.randn(rows, n, generator=generator))
            return u < below

        return draw


@dataclass(frozen=True, kw_only=True)
class FirstCopula(Copula):
    """Feature 0 correlates with every other one alike, and they not with each other: the world of
    "Sparse but wrong" (Chanin & Garriga-Alonso, arXiv 2508.16560).

    Args:
        rho: of feature 0 with each of the others, negative for features that avoid it; at most
            1 / sqrt(n_features - 1) in size, beyond which no such variables exist.
    """

    rho: float = 0.4

    def factor(self, n: int) -> tuple[Tensor, Tensor]:
        if not (n - 1) * self.rho**2 <= 1:
            raise UserError(
                f"rho={self.rho} is too much for n_features={n}: no variables correlate so; "
                f"give at most {(n - 1) ** -0.5:.3f} in size"
            )
        A = torch.eye(n, dtype=torch.float64)[1:]
        A[:, 0] = self.rho
        own = torch.zeros(n, dtype=torch.float64)
        own[0] = (1 - (n - 1) * self.rho**2) ** 0.5
        return A, own


@dataclass(frozen=True, kw_only=True)
class LowRankCopula(Copula):
    """A few common causes: u_i = sqrt(strength) <a_i, e> + sqrt(1 - strength) f_i with random unit
    vectors a_i of `rank` dimensions. Costs rank * n a sample, so n may be large.

    Args:
        rank: number of common causes.
        strength: share of the variance of u that they make up.
        correlation_seed: of a.
    """

    rank: int = 8
    strength: float = 0.5
    correlation_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise UserError(f"rank={self.rank} must be at least 1")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength={self.strength} is a share: from 0 to 1")

    def factor(self, n: int) -> tuple[Tensor, Tensor]:
        A = torch.randn(
            self.rank, n, generator=generator_of(self.correlation_seed, 1), dtype=torch.float64
        )
        A = torch.nn.functional.normalize(A, dim=0) * self.strength**0.5
        return A, torch.full((n,), (1 - self.strength) ** 0.5, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class DenseCopula(Copula):
    """Every pair has a correlation of its own, drawn uniformly from `low` to `high`.

    Few matrices so drawn can be correlations at all: negative eigenvalues are set to zero and the
    diagonal back to one, which shrinks them. `correlation` says what became of them.

    Args:
        low: least correlation before that.
        high: largest.
        correlation_seed: of the matrix.
    """

    low: float = -0.5
    high: float = 0.5
    correlation_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 < self.low <= self.high < 1:
            raise UserError(f"low={self.low}, high={self.high} must satisfy -1 < low <= high < 1")

    def factor(self, n: int) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(
            n, n, generator=generator_of(self.correlation_seed, 1), dtype=torch.float64
        )
        upper = (self.low + (self.high - self.low) * drawn).triu(1)
        wanted = upper + upper.T + torch.eye(n, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(wanted)
        A = values.clamp(min=0).sqrt()[:, None] * vectors.T
        return torch.nn.functional.normalize(A, dim=0), torch.zeros(n, dtype=torch.float64)
