"""JumpReLU: pre-activations above a learned threshold fire (Rajamanoharan et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sae.autoencoder.sparsity.base import (
    EncoderOutput,
    EncoderWeights,
    ExtraParam,
    Sparsity,
    ThresholdParam,
)
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.encode_threshold import encode_jumprelu, encode_threshold


@dataclass(frozen=True, kw_only=True)
class JumpReLU(Sparsity):
    """acts = pre if pre = (x - b_dec) W_enc + b_enc exceeds the latent's threshold (2407.14435).

    Thresholds learn by a straight-through gradient from pre-activations within bandwidth / 2 of
    them; they are float32, and act as 0 when negative. Needs a penalty such as L0. Activations are
    scaled to a mean distance of sqrt(d_in) to their center, so at the start a pre-activation is
    about 1 in size. The paper scales them to norm 1, for which it chose a bandwidth and threshold
    of 0.001.

    Args:
        d_sae: Number of latents.
        bandwidth: Width of the window around a threshold in which its gradient is not 0.
        threshold: Initial value of the thresholds.
    """

    d_sae: int
    bandwidth: float = 0.5
    threshold: float = 0.1

    threshold_param: ClassVar[ThresholdParam] = ThresholdParam("threshold", 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bandwidth > 0:
            raise UserError(f"model.sae.bandwidth={self.bandwidth} must be positive")
        if not self.threshold >= 0:
            raise UserError(f"model.sae.threshold={self.threshold} must not be negative")

    def extra_params(self) -> dict[str, ExtraParam]:
        return {"threshold": ExtraParam(self.threshold, wide=True)}

    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        w = weights
        threshold = w.extra["threshold"]
        return encode_threshold(
            x, w.W_enc, w.b_enc, w.pre_bias, threshold=threshold, backend=backend
        )

    def encode_training(
        self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto"
    ) -> EncoderOutput:
        w = weights
        codes, gates = encode_jumprelu(
            x, w.W_enc, w.b_enc, w.extra["threshold"], w.pre_bias, bandwidth=self.bandwidth,
            backend=backend,
        )  # fmt: skip
        return EncoderOutput(codes, gates)

    @property
    def needs_penalty(self) -> bool:
        return True
