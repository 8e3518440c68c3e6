"""Capacity by compressed sensing: how many latents can be active before codes are lost.

The bounds hold for a random dictionary of F unit vectors whose features are equally likely.
Correlated features and coherent dictionaries do worse. F is d_sae for an SAE, and the number of
features for a world.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from sae.errors import UserError

# The derivative below changes its sign well before: t grows as sqrt(2 ln(F / k)).
_LARGEST_T = 38.0


def statistical_dimension(k: float, F: int, *, non_negative: bool = True) -> float:
    """Return delta(k, F), the dimensions that l1 needs to recover k-sparse codes of F atoms.

    delta = min over t >= 0 of k (1 + t^2) + s (F - k) int_t^inf (u - t)^2 phi(u) du, with s = 1 for
    codes >= 0 and 2 for signed ones: the statistical dimension of the l1 norm's descent cone at a
    k-sparse point (Amelunxen, Lotz, McCoy & Tropp 2014, "Living on the edge", equation 4.10).
    If the data have fewer dimensions, recovery turns from almost certain to almost impossible.

    Args:
        k: number of active atoms; may be a mean, such as L0.
        F: number of atoms.
        non_negative: whether codes are non-negative.

    Raises:
        UserError: k is not between 0 and F.
    """
    if not 0 <= k <= F:
        raise UserError(f"k={k} must lie between 0 and the {F} latents")
    if k == 0:
        return 0.0
    others = (F - k) * (1 if non_negative else 2)

    def slope(t: float) -> float:  # half the derivative, which increases with t
        return float(k * t - others * (norm.pdf(t) - t * norm.sf(t)))

    t = float(brentq(slope, 0.0, _LARGEST_T))  # pyright: ignore[reportArgumentType]
    tail = (1 + t * t) * norm.sf(t) - t * norm.pdf(t)
    return float(k * (1 + t * t) + others * tail)


def largest_k(d: float, F: int, *, non_negative: bool = True) -> int:
    """Return the largest k with statistical_dimension(k, F) <= d."""
    low, high = 0, F
    while low < high:
        middle = (low + high + 1) // 2
        if statistical_dimension(middle, F, non_negative=non_negative) <= d:
            low = middle
        else:
            high = middle - 1
    return low


def effective_dimension(covariance: Tensor) -> float:
    """Return the participation ratio (tr C)^2 / tr C^2 of a covariance [d, d], from 1 to d.

    It is d if all directions vary equally, and n if n of them do and the others are constant. It is
    a pessimistic substitute for d, because directions of small variance still carry information.
    """
    C = covariance.double()
    return (C.trace().square() / C.square().sum()).item()


@dataclass(frozen=True)
class Capacity:
    """The bounds of compressed sensing for an SAE of this shape and this L0."""

    d: float
    """Dimensions of the data: d_in, or the effective dimension of the activations."""
    d_sae: int
    l0: float
    delta: float
    """Dimensions that this L0 needs."""
    largest_k: int
    """Largest number of active latents that these dimensions allow."""

    @property
    def margin(self) -> float:
        """d / delta. Below 1 codes cannot be recovered; infinite for an L0 of 0."""
        return self.d / self.delta if self.delta else float("inf")


def capacity(d: float, d_sae: int, l0: float, *, non_negative: bool = True) -> Capacity:
    """Return the bounds for d_sae latents in d dimensions, of which l0 are active on average."""
    return Capacity(
        d=d,
        d_sae=d_sae,
        l0=l0,
        delta=statistical_dimension(l0, d_sae, non_negative=non_negative),
        largest_k=largest_k(d, d_sae, non_negative=non_negative),
    )
