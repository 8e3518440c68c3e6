"""AbsTopK: the k pre-activations of largest magnitude fire, with their signs (Zhu et al. 2025)."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderWeights
from sae.autoencoder.sparsity.fixed_k import AnnealedK
from sae_kernels.codes import Codes
from sae_kernels.encode_dense_rule import encode_dense_rule, largest


@dataclass(frozen=True, kw_only=True)
class AbsTopK(AnnealedK):
    """acts = pre if |pre| is among the k largest of a token; pre = (x - b_dec) W_enc + b_enc.

    There is no relu: one latent stands for a direction and its opposite. Ties go to the lowest
    index.

    Args:
        d_sae: Number of latents.
        k: How many latents fire on one activation.
        k_start: How many fire at the first step; k by default.
        k_anneal: Share of the run over which k_start falls to k, linearly.
    """

    d_sae: int
    k: int
    k_start: int | None = None
    k_anneal: float = 0.0

    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        def select(pre: Tensor) -> tuple[Tensor, Tensor]:
            indices = largest(pre.abs(), self.k, backend=backend)
            return pre.gather(1, indices), indices

        w = weights
        return encode_dense_rule(x, w.W_enc, w.b_enc, select, w.pre_bias, backend=backend)

    @property
    def signed(self) -> bool:
        return True
