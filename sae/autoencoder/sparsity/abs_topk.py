"""AbsTopK: the k pre-activations of largest size fire, with their signs (Zhu et al. 2025)."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.sparsity.annealing import annealed_k, check_annealing
from sae.autoencoder.sparsity.base import Sparsity, check_k
from sae.autoencoder.weights import Weights
from sae_kernels.codes import Codes
from sae_kernels.encode_dense_rule import encode_dense_rule, largest


@dataclass(frozen=True, kw_only=True)
class AbsTopK(Sparsity):
    """acts = pre where |pre| is among the k largest of a token, pre = (x - b_dec) W_enc + b_enc.

    No relu: one latent stands for a direction and its opposite. Ties go to the lowest index.

    Args:
        d_sae: number of latents.
        k: how many latents fire on one activation.
        k_start: how many fire at the first step; k when left out.
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
        def choose(pre: Tensor) -> tuple[Tensor, Tensor]:
            indices = largest(pre.abs(), self.k, backend=backend)
            return pre.gather(1, indices), indices

        w = weights
        return encode_dense_rule(x, w.W_enc, w.b_enc, choose, w.pre_bias, backend=backend)

    def at_progress(self, progress: float) -> "AbsTopK":
        return annealed_k(self, progress)

    @property
    def signed(self) -> bool:
        return True
