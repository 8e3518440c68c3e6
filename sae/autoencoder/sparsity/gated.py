"""Gated: whether and how strongly are two questions (Rajamanoharan et al. 2024, 2404.16014)."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderOutput, Sparsity, check_width
from sae.autoencoder.weights import ExtraParam, Weights
from sae_kernels.codes import Codes
from sae_kernels.encode_gated import encode_gated


@dataclass(frozen=True, kw_only=True)
class Gated(Sparsity):
    """acts = 1[h + b_enc > 0] relu(h exp(r_mag) + b_mag), where h = (x - b_dec) W_enc.

    Needs a penalty on the gates (L1), and `GateReconstruction` in the objective, or the gates learn
    from nothing but the penalty.

    Args:
        d_sae: number of latents.
    """

    d_sae: int

    def __post_init__(self) -> None:
        check_width(self.d_sae)

    def extra_params(self) -> dict[str, ExtraParam]:
        return {"r_mag": ExtraParam(0.0, power=0), "b_mag": ExtraParam(0.0)}

    def encode(self, x: Tensor, weights: Weights, *, backend: str = "auto") -> Codes:
        return self.encode_training(x, weights, backend=backend).codes

    def encode_training(
        self, x: Tensor, weights: Weights, *, backend: str = "auto"
    ) -> EncoderOutput:
        w = weights
        codes, gate_codes = encode_gated(
            x, w.W_enc, w.b_enc, w.extra["b_mag"], w.extra["r_mag"], w.pre_bias, backend=backend
        )
        return EncoderOutput(codes, gate_codes=gate_codes)

    @property
    def needs_penalty(self) -> bool:
        return True
