"""Multi-TopK: the same weights also reconstruct with more latents (Gao et al. 2024)."""

from dataclasses import dataclass, replace
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
    """FVU of a second encoding, with `factor` times k latents, so that codes stay good where more
    fire than in training. Stands beside FVU.

    The second encoding costs another product with W_enc. Dead latents are those that the first
    one leaves silent.

    Args:
        coefficient: weight in the loss; 1/8 in the paper.
        factor: times k.
    """

    coefficient: float = 1 / 8
    factor: int = 4

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise UserError(f"model.losses MultiK.factor={self.factor}; give at least 2")

    def check(self, sae: "SAE") -> None:
        rule = sae.sparsity
        if getattr(rule, "k", None) is None:
            raise UserError(
                f"model.losses MultiK needs a rule with k, which {type(rule).__name__} is not; "
                "leave it out"
            )
        if self.factor * rule.k > rule.d_sae:
            raise UserError(
                f"model.losses MultiK.factor={self.factor} times model.sae.k={rule.k} exceeds "
                f"model.sae.d_sae={rule.d_sae}; lower one"
            )
        self.wider(rule)

    def wider(self, rule: "Sparsity") -> "Sparsity":
        """`rule` with `factor` times its k, or all latents where k is annealed from that many."""
        changes = {"k": min(self.factor * rule.k, rule.d_sae)}
        if hasattr(rule, "k_start"):
            changes |= {"k_start": None, "k_anneal": 0.0}
        return replace(rule, **changes)

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, rule = forward.sae, self.wider(forward.sae.sparsity)
        codes = sae.encode_training(forward.x, rule=rule, backend=forward.backend).codes
        _, squared_error = decode_error(
            codes, sae.W_dec, sae.b_dec, forward.target, backend=forward.backend
        )
        return squared_error / forward.variance
