"""ReLU: positive pre-activations fire, and a penalty keeps them rare (Bricken et al. 2023)."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderWeights, Sparsity
from sae_kernels.codes import Codes
from sae_kernels.encode_threshold import encode_threshold


@dataclass(frozen=True, kw_only=True)
class ReLU(Sparsity):
    """acts = relu((x - b_dec) W_enc + b_enc). Needs a penalty such as L1.

    Args:
        d_sae: Number of latents.
    """

    d_sae: int

    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        return encode_threshold(x, weights.W_enc, weights.b_enc, weights.pre_bias, backend=backend)

    @property
    def needs_penalty(self) -> bool:
        return True
