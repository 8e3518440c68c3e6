"""The pre-activation loss of JumpReLU, which brings dead latents back (Anthropic, January 2025)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm
from sae.errors import UserError
from sae_kernels.pre_act_loss import pre_act_loss

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class PreActs(LossTerm):
    """sum over dead latents of relu(theta_i - pre_i) |d_i| of a token, averaged over the batch.

    theta is the rule's threshold, or 0 if it has none. The gradient reaches only the dead latents'
    W_enc, b_enc and learned thresholds, and b_dec if it is subtracted from x. |d_i| is 1 while
    `model.optim.unit_norm` holds it there.

    Args:
        coefficient: Weight in the loss; 3e-6 in the source, which uses MSE.
        max_latents: Largest number of dead latents that learn from it at a time, those first that
            have not fired for longest; 8 d_out by default.
    """

    coefficient: float = 3e-6
    max_latents: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.coefficient > 0:
            raise UserError(f"model.losses PreActs.coefficient={self.coefficient} must be positive")
        if self.max_latents is not None and self.max_latents < 1:
            raise UserError(
                f"model.losses PreActs.max_latents={self.max_latents}; give at least 1, or leave "
                "it out"
            )

    def check(self, sae: "SAE") -> None:
        if sae.site.groups > 1:
            raise UserError(
                f"model.losses PreActs does not apply to {type(sae.site).__name__}, whose "
                "latents read one layer each; leave it out"
            )
        if sae.sparsity.signed:
            raise UserError(
                "model.losses PreActs raises pre-activations towards a threshold above them, and "
                f"{type(sae.sparsity).__name__} has none, because it is signed; leave it out"
            )

    def max_dead_latents(self, sae: "SAE") -> int:
        return self.max_latents or 8 * sae.d_out

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, dead_list = forward.sae, forward.dead_list
        if len(dead_list) == 0:
            return torch.zeros_like(forward.squared_error)
        weights = sae.weights()
        theta = weights.extra.get("threshold", torch.zeros_like(forward.squared_error)).clamp(min=0)
        theta = theta.index_select(0, dead_list) if theta.dim() else theta.expand(len(dead_list))
        shortfall = pre_act_loss(
            forward.x, sae.W_enc, sae.b_enc, theta, dead_list, b_dec=weights.pre_bias,
            backend=forward.backend,
        )  # fmt: skip
        norms = 1.0 if sae.unit_norm else sae.decoder_norms().index_select(0, dead_list)
        return (shortfall * forward.still_dead * norms).sum() / len(forward.x)
