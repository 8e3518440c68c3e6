"""TopK: the k largest pre-activations fire (Makhzani & Frey 2013; Gao et al. 2024, eq. 3)."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.sparsity.annealing import annealed_k, check_annealing
from sae.autoencoder.sparsity.base import Sparsity, check_k
from sae.autoencoder.weights import Weights
from sae_kernels.codes import Codes
from sae_kernels.encode_topk import encode_topk


@dataclass(frozen=True, kw_only=True)
class TopK(Sparsity):
    """acts = relu(top-k of (x - b_dec) W_enc + b_enc).

    Args:
        d_sae: number of latents.
        k: how many latents may fire on one activation. Fewer fire where fewer are positive.
        k_start: how many may fire at the first step; k when left out.
        k_anneal: share of the run over which k_start becomes k, linearly.
    """

    d_sae: int
    k: int
    k_start: int | None = None
    k_anneal: float = 0.0

    def __post_init__(self) -> None:
        check_k(self.k, self.d_sae)
        check_annealing(self)

    def encode(self, x: Tensor, weights: Weights, *, backend: str = "auto") -> Codes:
        w = weights
        return encode_topk(x, w.W_enc, w.b_enc, self.k, w.pre_bias, backend=backend)

    def at_progress(self, progress: float) -> "TopK":
        return annealed_k(self, progress)
