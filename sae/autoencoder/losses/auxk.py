"""AuxK: dead latents learn from what the living ones leave over (Gao et al. 2024, appendix A.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm, spread
from sae.errors import UserError
from sae_kernels.aux_error import aux_error

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class AuxK(LossTerm):
    """The residual e = y - y_hat, detached, is rebuilt from the k_aux strongest dead latents.

    min(#dead / k_aux, 1) * sum |e - e_hat|^2 / sum |e - mean(e)|^2, where
    e_hat = relu(top-k_aux over dead latents of the pre-activations) W_dec, without b_dec.
    The gradient reaches W_enc, b_enc and W_dec of the dead latents. Zero when none is dead.

    Args:
        coefficient: weight in the loss; 1/32 in the paper, as much as FVU here.
        k_aux: how many dead latents may fire on one activation; an eighth of d_in when left out
            (half in the paper): few and strong, since a latent that adds little to each of many
            does not fire on its own (docs/defaults.md).
    """

    coefficient: float = 1.0
    k_aux: int | None = None

    def __post_init__(self) -> None:
        if self.k_aux is not None and self.k_aux < 1:
            raise UserError(f"model.losses AuxK.k_aux={self.k_aux}; give at least 1 or leave out")

    def check(self, sae: "SAE") -> None:
        if sae.site.groups > 1:
            raise UserError(
                f"model.losses AuxK does not apply to {type(sae.site).__name__}, whose latents "
                "read one layer each; leave it out"
            )

    def most_firing(self, d_out: int) -> int:
        """k_aux, or what it is when left out."""
        return self.k_aux or max(1, d_out // 8)

    def max_dead_latents(self, sae: "SAE") -> int:
        # 16 k_aux columns bound the dense product; the other dead latents wait their turn.
        return 16 * self.most_firing(sae.d_out)

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, silent, is_dead = forward.sae, forward.silent, forward.is_dead
        if len(silent) == 0:
            return torch.zeros_like(forward.squared_error)
        residual = forward.residual
        k_aux = self.most_firing(residual.shape[1])

        missed = aux_error(
            forward.x, residual, sae.W_enc, sae.b_enc, sae.W_dec, silent, k_aux,
            b_dec=sae.weights().pre_bias, mask=is_dead, backend=forward.backend,
        )  # fmt: skip
        variance = spread(residual)
        share = (is_dead.sum().to(variance.dtype) / k_aux).clamp(max=1)
        # No residual at all means nothing to learn, not a division by zero.
        return share * missed / variance.clamp_min(torch.finfo(variance.dtype).tiny)
