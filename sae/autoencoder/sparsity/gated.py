"""Gated: gates decide which latents fire, magnitudes how strongly (Rajamanoharan et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sae.autoencoder.sparsity.base import (
    EncoderOutput,
    EncoderWeights,
    ExtraParam,
    Sparsity,
)
from sae_kernels.codes import Codes
from sae_kernels.encode_gated import encode_gated


@dataclass(frozen=True, kw_only=True)
class Gated(Sparsity):
    """acts = 1[h + b_enc > 0] relu(h exp(r_mag) + b_mag), where h = (x - b_dec) W_enc (2404.16014).

    Needs a penalty on the gates (L1) and the loss term `GateReconstruction`; without the latter,
    the gates learn only from the penalty.

    Args:
        d_sae: Number of latents.
    """

    d_sae: int

    has_gates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()

    def extra_params(self) -> dict[str, ExtraParam]:
        return {"r_mag": ExtraParam(0.0, power=0), "b_mag": ExtraParam(0.0)}

    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        return self.encode_training(x, weights, backend=backend).codes

    def encode_training(
        self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto"
    ) -> EncoderOutput:
        w = weights
        codes, gate_codes = encode_gated(
            x, w.W_enc, w.b_enc, w.extra["b_mag"], w.extra["r_mag"], w.pre_bias, backend=backend
        )
        return EncoderOutput(codes, gate_codes=gate_codes)

    def shift_pre_acts(self, weights: EncoderWeights, shift: Tensor) -> None:
        super().shift_pre_acts(weights, shift)
        weights.extra["b_mag"].add_(weights.extra["r_mag"].exp() * shift)

    @property
    def needs_penalty(self) -> bool:
        return True
