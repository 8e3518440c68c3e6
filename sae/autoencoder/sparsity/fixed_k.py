"""Base classes of rules in which k latents fire, and of those whose k falls during the run."""

from dataclasses import replace
from typing import Self

from sae.autoencoder.sparsity.base import Sparsity
from sae.errors import UserError


class FixedK(Sparsity, abstract=True):
    """A rule by which k latents fire on each activation, or at most k, or k on average."""

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise UserError(f"model.sae.k={self.k} lets no latent fire; give at least 1")
        if self.k > self.d_sae:
            raise UserError(
                f"model.sae.k={self.k} exceeds model.sae.d_sae={self.d_sae}; lower k or raise d_sae"
            )

    @property
    def expected_l0(self) -> int:
        return self.k

    @property
    def peak_l0(self) -> float:
        return self.k

    def with_l0(self, l0: int) -> Self | None:
        return replace(self, k=l0)  # type: ignore[type-var]

    def with_d_sae(self, d_sae: int) -> Self:
        return replace(self, d_sae=d_sae, k=min(self.k, d_sae))  # type: ignore[type-var]

    def per_group(self, n: int) -> Self:
        return replace(self, d_sae=self.d_sae // n, k=max(1, self.k // n))  # type: ignore[type-var]

    def check_per_group(self, n: int) -> None:
        super().check_per_group(n)
        self._check_share("k", self.k, n)


class AnnealedK(FixedK, abstract=True):
    """A rule whose k falls from `k_start` over the first `k_anneal` of the run.

    Many latents learn before few may fire (sparsify, OpenMOSS's Language-Model-SAEs).
    """

    k_start: int | None
    k_anneal: float

    def __post_init__(self) -> None:
        super().__post_init__()
        start = self.k_start
        if not 0 <= self.k_anneal <= 1:
            raise UserError(
                f"model.sae.k_anneal={self.k_anneal} is a share of the run; give a number from 0 "
                "to 1"
            )
        if start is None and self.k_anneal:
            raise UserError(f"model.sae.k_anneal={self.k_anneal} needs model.sae.k_start; set both")
        if start is not None and not self.k <= start <= self.d_sae:
            raise UserError(
                f"model.sae.k_start={start} must be between k={self.k} and d_sae={self.d_sae}"
            )

    @property
    def anneals(self) -> bool:
        return self.k_start is not None

    @property
    def peak_l0(self) -> float:
        return max(self.k, self.k_start or 0)

    def with_l0(self, l0: int) -> Self | None:
        return replace(self, k=l0, k_start=None, k_anneal=0.0)  # type: ignore[type-var]

    def with_d_sae(self, d_sae: int) -> Self:
        k = min(self.k, d_sae)
        return replace(self, d_sae=d_sae, k=k, k_start=None, k_anneal=0.0)  # type: ignore[type-var]

    def at_progress(self, progress: float) -> Self:
        if self.k_start is None or progress >= self.k_anneal:
            return self
        left = 1 - progress / self.k_anneal
        k = self.k + round(left * (self.k_start - self.k))
        return replace(self, k=k)  # type: ignore[type-var]

    def per_group(self, n: int) -> Self:
        start = None if self.k_start is None else max(1, self.k_start // n)
        d_sae, k = self.d_sae // n, max(1, self.k // n)
        return replace(self, d_sae=d_sae, k=k, k_start=start)  # type: ignore[type-var]
