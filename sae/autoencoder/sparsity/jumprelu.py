"""JumpReLU: what exceeds a threshold of its own fires (Rajamanoharan et al. 2024, 2407.14435)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderOutput, Sparsity, check_width
from sae.autoencoder.weights import ExtraParam, Weights
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.encode_threshold import encode_jumprelu, encode_threshold


@dataclass(frozen=True, kw_only=True)
class JumpReLU(Sparsity):
    """acts = pre where pre = (x - b_dec) W_enc + b_enc exceeds a threshold that each latent learns.

    Thresholds learn straight through, from pre-activations within bandwidth / 2 of them; they are
    fp32 and act as 0 when negative. Needs a penalty in the objective, such as L0. Activations are
    scaled to norm sqrt(d_in) on average, and so at the start a pre-activation is about 1 in size;
    the paper's are scaled to norm 1, where its bandwidth and threshold of 0.001 were chosen.

    Args:
        d_sae: number of latents.
        bandwidth: width of the window around a threshold in which its gradient is not 0.
        threshold: where thresholds start.
    """

    d_sae: int
    bandwidth: float = 0.5
    threshold: float = 0.1

    threshold_param: ClassVar[tuple[str, int]] = ("threshold", 1)

    def __post_init__(self) -> None:
        check_width(self.d_sae)
        if not self.bandwidth > 0:
            raise UserError(f"model.sae.bandwidth={self.bandwidth} must be positive")
        if not self.threshold >= 0:
            raise UserError(f"model.sae.threshold={self.threshold} must not be negative")

    def extra_params(self) -> dict[str, ExtraParam]:
        return {"threshold": ExtraParam(self.threshold, wide=True)}

    def encode(self, x: Tensor, weights: Weights, *, backend: str = "auto") -> Codes:
        w = weights
        threshold = w.extra["threshold"]
        return encode_threshold(
            x, w.W_enc, w.b_enc, w.pre_bias, threshold=threshold, backend=backend
        )

    def encode_training(
        self, x: Tensor, weights: Weights, *, backend: str = "auto"
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
