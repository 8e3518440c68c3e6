"""Multi-TopK: the same weights also reconstruct with more latents (Gao et al. 2024)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm
from sae.errors import UserError
from sae_kernels.decode_error import decode_error

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE
    from sae.autoencoder.sparsity import Sparsity


@dataclass(frozen=True, kw_only=True)
class MultiK(LossTerm):
    """The FVU of a second encoding with `factor` times k latents; used in addition to FVU.

    It keeps codes good when more latents fire than in training. The second encoding costs another
    product with W_enc. Dead latents are those that the first encoding leaves silent.

    Args:
        coefficient: Weight in the loss; 1/8 in the paper.
        factor: Multiple of k.
    """

    coefficient: float = 1 / 8
    factor: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 2:
            raise UserError(f"model.losses MultiK.factor={self.factor}; give at least 2")

    def check(self, sae: "SAE") -> None:
        rule = sae.sparsity
        k = rule.expected_l0
        if k is None:
            raise UserError(
                f"model.losses MultiK needs a rule with k, and {type(rule).__name__} has none; "
                "leave it out"
            )
        if self.factor * k > rule.d_sae:
            raise UserError(
                f"model.losses MultiK.factor={self.factor} times k={k} exceeds d_sae={rule.d_sae}; "
                "lower one"
            )
        self.wider(rule)

    def wider(self, rule: "Sparsity") -> "Sparsity":
        """Return `rule` with `factor` times its k, at most d_sae.

        More than d_sae is possible while k is annealed.
        """
        l0 = min(self.factor * (rule.expected_l0 or 0), rule.d_sae)
        wider = rule.with_l0(l0)
        if wider is None:
            raise UserError(
                f"model.losses MultiK.factor={self.factor}: {type(rule).__name__} with "
                f"d_sae={rule.d_sae} "
                f"cannot have k={l0}; choose another factor"
            )
        return wider

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, rule = forward.sae, self.wider(forward.sae.sparsity)
        codes = sae.encode_training(forward.x, rule=rule, backend=forward.backend).codes
        _, squared_error = decode_error(
            codes, sae.W_dec, sae.b_dec, forward.target, backend=forward.backend
        )
        return squared_error / forward.variance
