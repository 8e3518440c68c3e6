"""TopK: the k largest pre-activations fire (Makhzani & Frey 2013; Gao et al. 2024, eq. 3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.autoencoder.sparsity.base import Sparsity
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.encode_topk import encode_topk

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class TopK(Sparsity):
    """acts = relu(top-k of (x - b_dec) W_enc + b_enc).

    Args:
        d_sae: number of latents.
        k: how many latents may fire on one activation. Fewer fire where fewer are positive.
    """

    d_sae: int
    k: int

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise UserError(f"model.sae.d_sae={self.d_sae} is not a width; give at least 1")
        if self.k < 1:
            raise UserError(f"model.sae.k={self.k} lets no latent fire; give at least 1")
        if self.k > self.d_sae:
            raise UserError(
                f"model.sae.k={self.k} exceeds model.sae.d_sae={self.d_sae}; lower k or raise d_sae"
            )

    def encode(self, x: Tensor, sae: "SAE", *, backend: str = "auto") -> Codes:
        return encode_topk(x, sae.W_enc, sae.b_enc, self.k, sae.b_dec, backend=backend)

    @torch.no_grad()
    def fold(self, sae: "SAE", scale: float) -> None:
        # relu(top-k) is homogeneous: dividing every pre-activation by `scale` divides the codes
        # and changes no choice, so only the biases move.
        sae.b_enc /= scale
        sae.b_dec /= scale
