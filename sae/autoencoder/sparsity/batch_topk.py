"""BatchTopK: the k * batch largest pre-activations of a batch fire (Bussmann et al. 2024)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderOutput, EncoderWeights, ExtraParam
from sae.autoencoder.sparsity.fixed_k import AnnealedK
from sae_kernels.codes import Codes
from sae_kernels.encode_batch_topk import encode_batch_topk
from sae_kernels.encode_threshold import encode_threshold

RATE = 0.01  # update rate of the threshold's running mean; the first batch sets it


@dataclass(frozen=True, kw_only=True)
class BatchTopK(AnnealedK):
    """In training, the k * batch largest of relu((x - b_dec) W_enc + b_enc) of a batch fire.

    At inference all that exceed `threshold` fire, so that a token's codes do not depend on the
    other tokens of its batch. The threshold, one for all latents, is a running mean of the least
    value that fired in a batch.

    Args:
        d_sae: Number of latents.
        k: How many latents fire on one activation, on average.
        k_start: The same at the first step; k by default.
        k_anneal: Share of the run over which k_start falls to k, linearly.
    """

    d_sae: int
    k: int
    k_start: int | None = None
    k_anneal: float = 0.0

    def extra_params(self) -> dict[str, ExtraParam]:
        return {"threshold": ExtraParam(0.0, learns=False, wide=True)}

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
        return EncoderOutput(
            encode_batch_topk(x, w.W_enc, w.b_enc, self.k, w.pre_bias, backend=backend)
        )

    def post_step(self, encoded: EncoderOutput, weights: EncoderWeights) -> None:
        values, threshold = encoded.codes.values.detach(), weights.extra["threshold"]
        least = torch.where(values > 0, values, torch.inf).min().to(threshold.dtype)
        # A value fires if it exceeds the threshold, so the next number below keeps the least one.
        least = torch.where(least.isfinite(), least.nextafter(torch.zeros_like(least)), threshold)
        threshold.copy_(torch.where(threshold == 0, least, threshold.lerp(least, RATE)))
