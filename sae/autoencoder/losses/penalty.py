"""What penalties share: a coefficient, or a wanted L0 that one is found for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sae.autoencoder.losses.base import LossTerm
from sae.errors import UserError

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class Penalty(LossTerm):
    """Keeps latents from firing.

    Args:
        coefficient: weight in the loss; with target_l0, the weight to begin with.
        target_l0: latents per token to end with: the coefficient is steered during the run.
        target_at: share of the run after which L0 is to be there; until then it falls, from up to
            eight times as much.
        warmup: share of the run over which the weight rises from 0.
    """

    coefficient: float = 1e-2
    target_l0: float | None = None
    target_at: float = 0.5
    warmup: float = 0.05

    penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = f"model.losses {type(self).__name__}"
        if not self.coefficient > 0:
            raise UserError(f"{name}.coefficient={self.coefficient} must be positive")
        if self.target_l0 is not None and not self.target_l0 > 0:
            raise UserError(f"{name}.target_l0={self.target_l0} must be positive")
        for setting in ("warmup", "target_at"):
            value = getattr(self, setting)
            if not 0 <= value <= 1:
                raise UserError(f"{name}.{setting}={value} is a share of the run: from 0 to 1")

    @property
    def steering(self) -> dict[str, float]:
        """Settings of the controller, where its own do not suit."""
        return {}

    @property
    def controlled_term(self) -> bool:
        """Whether a controller sets the coefficient."""
        return self.target_l0 is not None

    def check(self, sae: "SAE") -> None:
        if sae.sparsity.signed:
            raise UserError(
                f"model.losses {type(self).__name__} counts on activations that are not "
                f"negative, and those of {type(sae.sparsity).__name__} are; leave it out"
            )
        if self.target_l0 is None:
            return
        if not sae.sparsity.needs_penalty:
            raise UserError(
                f"model.losses {type(self).__name__}.target_l0={self.target_l0}: "
                f"{type(sae.sparsity).__name__} fixes its L0 itself, with k; leave it out"
            )
        if self.target_l0 >= sae.d_sae:
            raise UserError(
                f"model.losses {type(self).__name__}.target_l0={self.target_l0} is not below "
                f"d_sae={sae.d_sae}"
            )
