"""The plain world of superposition: independent features in random directions."""

from __future__ import annotations

from typing import Any, Literal

from sae.errors import UserError
from sae.worlds.magnitudes import Constant, HalfNormal
from sae.worlds.support import Bernoulli, Exact
from sae.worlds.world import World


class SparseSuperposition(World):
    """A `World` of independent features in random directions, with one flat list of settings.

    It covers the settings of most published experiments: `Bernoulli` or `Exact` activity,
    `HalfNormal` or `Constant` magnitudes, and `Random` directions.

    Args:
        d_in: width of y.
        n_features: number of rows of W, each a random direction of norm 1.
        mean_active: mean number of active features in a sample.
        active: `bernoulli`: features fire independently, so their number varies.
            `exact`: exactly `mean_active` fire, each still with its own frequency.
        frequency_exponent: frequency of feature i (from 1) is proportional to i^-exponent, scaled
            to `mean_active` in total and capped at 1; 0 makes all equally frequent.
        magnitudes: value of an active feature: `half_normal` is scale * |N(0, 1)|, `constant` is
            scale * |1 + spread * N(0, 1)|.
        scale: see `magnitudes`.
        spread: relative standard deviation of `constant` magnitudes.
        noise: standard deviation of Gaussian noise added to every dimension of y.
        dictionary_seed: seed of W; the seed of a block draws samples only.

    Raises:
        UserError: A setting is out of range.
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
        self._settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if active not in ("bernoulli", "exact"):
            raise UserError(f"active={active!r} is not known; choose bernoulli or exact")
        if magnitudes not in ("half_normal", "constant"):
            raise UserError(
                f"magnitudes={magnitudes!r} is not known; choose half_normal or constant"
            )
        if spread and magnitudes != "constant":
            raise UserError(f"spread={spread} needs magnitudes=constant; with {magnitudes} it is 0")
        subset = Exact if active == "exact" else Bernoulli
        constant = magnitudes == "constant"
        super().__init__(
            d_in,
            n_features,
            subset(mean_active=mean_active, frequency_exponent=frequency_exponent),
            Constant(scale=scale, spread=spread) if constant else HalfNormal(scale=scale),
            noise=noise,
            dictionary_seed=dictionary_seed,
        )

    def metadata(self) -> dict[str, Any]:
        """Return the settings of this world."""
        return {"world": type(self).__name__, **self._settings}
