"""Correlated features: Gaussian copulas of the active features."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sae.errors import UserError
from sae.worlds.seeding import generator_of
from sae.worlds.support import Frequent, Sampler


@dataclass(frozen=True, kw_only=True)
class Copula(Frequent):
    """Base class of distributions with correlated features.

    Feature i is active if a standard normal variable u_i lies below its p_i-quantile. The u_i are
    jointly normal, so correlations do not change any frequency. All correlations are those of u;
    the active features themselves correlate less.
    """

    @abstractmethod
    def factor(self, n: int) -> tuple[Tensor, Tensor]:
        """Return A [r, n] and s [n], float64, with u = e A + s * f for standard normal e and f."""

    def correlation(self, n: int) -> Tensor:
        """Return the correlation matrix of u, float64 [n, n]."""
        A, s = self.factor(n)
        return A.T @ A + s.square().diag()

    def sampler(self, n: int) -> Sampler:
        below = torch.special.ndtri(self.frequencies(n))
        A, s = (part.float() for part in self.factor(n))

        def draw(rows: int, generator: Generator) -> Tensor:
            u = torch.randn(rows, len(A), generator=generator) @ A
            if s.any():
                u.addcmul_(s, torch.randn(rows, n, generator=generator))
            return u < below

        return draw


@dataclass(frozen=True, kw_only=True)
class FirstCopula(Copula):
    """Feature 0 correlates equally with all others, which do not correlate with each other.

    This is the world of "Sparse but wrong" (Chanin & Garriga-Alonso, arXiv 2508.16560).

    Args:
        rho: correlation of feature 0 with each other feature; negative for features that avoid it.
            |rho| is at most 1 / sqrt(n_features - 1); no such variables exist beyond that.
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
        s = torch.zeros(n, dtype=torch.float64)
        s[0] = (1 - (n - 1) * self.rho**2) ** 0.5
        return A, s


@dataclass(frozen=True, kw_only=True)
class LowRankCopula(Copula):
    """Features with a few common causes.

    u_i = sqrt(strength) <a_i, e> + sqrt(1 - strength) f_i, with random unit vectors a_i in `rank`
    dimensions. A sample costs rank * n operations, so n may be large.

    Args:
        rank: number of common causes.
        strength: share of the variance of u from the common causes.
        correlation_seed: seed of the vectors a_i.
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
    """Every pair of features has its own correlation, drawn uniformly from `low` to `high`.

    Few matrices drawn this way are valid correlation matrices, so negative eigenvalues are set to
    zero and the diagonal is scaled back to one, which shrinks the correlations. `correlation`
    returns the result.

    Args:
        low: least correlation drawn.
        high: largest correlation drawn.
        correlation_seed: seed of the matrix.
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
        symmetric = upper + upper.T + torch.eye(n, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(symmetric)
        A = values.clamp(min=0).sqrt()[:, None] * vectors.T
        return torch.nn.functional.normalize(A, dim=0), torch.zeros(n, dtype=torch.float64)
