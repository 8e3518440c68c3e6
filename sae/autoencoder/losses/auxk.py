"""AuxK: dead latents learn from the residual of the living ones (Gao et al. 2024, app. A.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm, total_variance
from sae.errors import UserError
from sae_kernels.aux_error import aux_error

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class AuxK(LossTerm):
    """Reconstruct the detached residual e = y - y_hat from the k_aux strongest dead latents.

    min(#dead / k_aux, 1) * sum |e - e_hat|^2 / sum |e - mean(e)|^2, where
    e_hat = relu(top-k_aux over dead latents of the pre-activations) W_dec, without b_dec.
    The gradient reaches only the dead latents' W_enc, b_enc and W_dec. Zero if none is dead.

    Args:
        coefficient: Weight in the loss; 1/32 in the paper, the weight of FVU here.
        k_aux: The most dead latents that fire on one activation; d_out / 8 by default (half of d_in
            in the paper). With few, each is strong; a latent that adds a little to many
            activations does not come to fire on its own (docs/explanation/defaults.md).
    """

    coefficient: float = 1.0
    k_aux: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k_aux is not None and self.k_aux < 1:
            raise UserError(
                f"model.losses AuxK.k_aux={self.k_aux}; give at least 1, or leave it out"
            )

    def check(self, sae: "SAE") -> None:
        if sae.site.groups > 1:
            raise UserError(
                f"model.losses AuxK does not apply to {type(sae.site).__name__}, whose latents "
                "read one layer each; leave it out"
            )

    def effective_k_aux(self, d_out: int) -> int:
        """Return k_aux, or its default for a prediction of width d_out."""
        return self.k_aux or max(1, d_out // 8)

    def max_dead_latents(self, sae: "SAE") -> int:
        # Bounds the dense product to 16 k_aux columns; further dead latents get their turn later.
        return 16 * self.effective_k_aux(sae.d_out)

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, dead_list, still_dead = forward.sae, forward.dead_list, forward.still_dead
        if len(dead_list) == 0:
            return torch.zeros_like(forward.squared_error)
        residual = forward.residual
        k_aux = self.effective_k_aux(residual.shape[1])

        squared_error = aux_error(
            forward.x, residual, sae.W_enc, sae.b_enc, sae.W_dec, dead_list, k_aux,
            b_dec=sae.weights().pre_bias, mask=still_dead, backend=forward.backend,
        )  # fmt: skip
        variance = total_variance(residual)
        share = (still_dead.sum().to(variance.dtype) / k_aux).clamp(max=1)
        # A residual of exactly 0 leaves nothing to learn; avoid dividing by its variance.
        return share * squared_error / variance.clamp_min(torch.finfo(variance.dtype).tiny)
