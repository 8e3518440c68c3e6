"""Base class of penalties, with a fixed coefficient or one that is controlled to reach an L0."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae.autoencoder.losses.base import LossTerm
from sae.errors import UserError

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class Penalty(LossTerm, abstract=True):
    """A loss term that keeps latents from firing.

    Args:
        coefficient: Weight in the loss; with target_l0, the initial weight.
        target_l0: Target L0 at the end: a controller adjusts the coefficient during the run.
        target_at: Share of the run after which L0 should be at its target; until then it falls,
            from up to eight times as much.
        warmup: Share of the run over which the weight rises from 0.
    """

    coefficient: float = 1e-2
    target_l0: float | None = None
    target_at: float = 0.5
    warmup: float = 0.05

    penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        name = f"model.losses {type(self).__name__}"
        if not self.coefficient > 0:
            raise UserError(f"{name}.coefficient={self.coefficient} must be positive")
        if self.target_l0 is not None and not self.target_l0 > 0:
            raise UserError(f"{name}.target_l0={self.target_l0} must be positive")
        for setting, value in (("warmup", self.warmup), ("target_at", self.target_at)):
            if not 0 <= value <= 1:
                raise UserError(
                    f"{name}.{setting}={value} is a share of the run; give a number from 0 to 1"
                )

    @property
    def controlled(self) -> bool:
        return self.target_l0 is not None

    def check(self, sae: "SAE") -> None:
        name, rule = f"model.losses {type(self).__name__}", type(sae.sparsity).__name__
        if sae.sparsity.signed:
            raise UserError(
                f"{name} needs activations that are not negative, and those of "
                f"{rule} may be; leave it out"
            )
        if self.target_l0 is None:
            return
        if not sae.sparsity.needs_penalty:
            raise UserError(
                f"{name}.target_l0={self.target_l0}: {rule} fixes its L0 itself, with k; leave "
                "target_l0 out"
            )
        if self.target_l0 >= sae.d_sae:
            raise UserError(
                f"{name}.target_l0={self.target_l0} must be below d_sae={sae.d_sae}; lower it"
            )
