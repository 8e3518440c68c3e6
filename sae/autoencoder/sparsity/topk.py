"""TopK: the k largest pre-activations fire (Makhzani & Frey 2013; Gao et al. 2024, eq. 3)."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderWeights
from sae.autoencoder.sparsity.fixed_k import AnnealedK
from sae_kernels.codes import Codes
from sae_kernels.encode_topk import encode_topk


@dataclass(frozen=True, kw_only=True)
class TopK(AnnealedK):
    """acts = relu(top-k of (x - b_dec) W_enc + b_enc).

    Args:
        d_sae: Number of latents.
        k: The most latents that fire on one activation. Fewer fire if fewer are positive.
        k_start: The same at the first step; k by default.
        k_anneal: Share of the run over which k_start falls to k, linearly.
    """

    d_sae: int
    k: int
    k_start: int | None = None
    k_anneal: float = 0.0

    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        w = weights
        return encode_topk(x, w.W_enc, w.b_enc, self.k, w.pre_bias, backend=backend)
