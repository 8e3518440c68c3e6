"""What the gates of a Gated SAE learn from (Rajamanoharan et al. 2024, 2404.16014, eq. 8)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm
from sae.errors import UserError
from sae_kernels.decode_error import decode_error

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class GateReconstruction(LossTerm):
    """sum |y - (relu(pi_gate) W_dec + b_dec)|^2 / sum |y - mean(y)|^2, decoder held constant.

    Args:
        coefficient: weight in the loss.
    """

    coefficient: float = 1.0

    def check(self, sae: "SAE") -> None:
        if type(sae.sparsity).__name__ != "Gated":
            raise UserError(
                "model.losses GateReconstruction is for Gated; "
                f"{type(sae.sparsity).__name__} has no gates of their own, leave it out"
            )

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae = forward.sae
        _, squared_error = decode_error(
            forward.encoded.gate_codes, sae.W_dec.detach(), sae.b_dec.detach(), forward.target,
            backend=forward.backend,
        )  # fmt: skip
        return squared_error / forward.variance
