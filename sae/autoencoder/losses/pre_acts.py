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

    theta is the rule's threshold, and 0 where it has none. The gradient reaches W_enc, b_enc and
    thresholds that learn, of dead latents alone, and b_dec where it is subtracted from x; |d_i| is
    1 while `model.optim.unit_norm` holds it there.

    Args:
        coefficient: weight in the loss; 3e-6 in the source, whose error is MSE.
        most: how many dead latents learn from it at a time, those silent for longest first; 8 times
            the width of what is predicted when left out.
    """

    coefficient: float = 3e-6
    most: int | None = None

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise UserError(f"model.losses PreActs.coefficient={self.coefficient} must be positive")
        if self.most is not None and self.most < 1:
            raise UserError(f"model.losses PreActs.most={self.most}; give at least 1 or leave out")

    def check(self, sae: "SAE") -> None:
        if sae.site.groups > 1:
            raise UserError(
                f"model.losses PreActs does not apply to {type(sae.site).__name__}, whose "
                "latents read one layer each; leave it out"
            )

        if sae.sparsity.signed:
            raise UserError(
                "model.losses PreActs raises pre-activations to a threshold from below, and "
                f"{type(sae.sparsity).__name__} has none of that kind; leave it out"
            )

    def max_dead_latents(self, sae: "SAE") -> int:
        return self.most or 8 * sae.d_out

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, silent = forward.sae, forward.silent
        if len(silent) == 0:
            return torch.zeros_like(forward.squared_error)
        weights = sae.weights()
        theta = weights.extra.get("threshold", torch.zeros_like(forward.squared_error)).clamp(min=0)
        theta = theta.index_select(0, silent) if theta.dim() else theta.expand(len(silent))
        short = pre_act_loss(
            forward.x, sae.W_enc, sae.b_enc, theta, silent, b_dec=weights.pre_bias,
            backend=forward.backend,
        )  # fmt: skip
        norms = 1.0 if sae.unit_norm else sae.decoder_norms().index_select(0, silent)
        return (short * forward.is_dead * norms).sum() / len(forward.x)
