"""The auxiliary loss that trains the gates of a Gated SAE (Rajamanoharan et al. 2024, eq. 8)."""

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
    """sum |y - (relu(pi_gate) W_dec + b_dec)|^2 / sum |y - mean(y)|^2, with the decoder constant.

    Source: 2404.16014.

    Args:
        coefficient: Weight in the loss.
    """

    coefficient: float = 1.0

    def check(self, sae: "SAE") -> None:
        if not sae.sparsity.has_gates:
            raise UserError(
                "model.losses GateReconstruction trains gates, and "
                f"{type(sae.sparsity).__name__} has none; leave it out, or use Gated"
            )

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, gate_codes = forward.sae, forward.encoded.gate_codes
        assert gate_codes is not None, "a rule with has_gates gives gate codes"
        _, squared_error = decode_error(
            gate_codes, sae.W_dec.detach(), sae.b_dec.detach(), forward.target,
            backend=forward.backend,
        )  # fmt: skip
        return squared_error / forward.variance
