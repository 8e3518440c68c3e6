"""GroupMax: of each group of latents the strongest fires (a hard local winner takes all)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.autoencoder.sparsity.base import Sparsity, check_k
from sae.autoencoder.weights import Weights
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.encode_dense_rule import encode_dense_rule


@dataclass(frozen=True, kw_only=True)
class GroupMax(Sparsity):
    """acts = relu of the largest pre-activation of each of k groups, (x - b_dec) W_enc + b_enc.

    Group i is the i-th run of d_sae / k latents. Cheaper to select than TopK, and no two latents of
    one group ever fire together. Ties go to the lowest index.

    Args:
        d_sae: number of latents; a multiple of k.
        k: number of groups, and so how many latents may fire on one activation. Fewer fire where
            the largest of a group is not positive.
    """

    d_sae: int
    k: int

    def __post_init__(self) -> None:
        check_k(self.k, self.d_sae)
        if self.d_sae % self.k:
            raise UserError(
                f"model.sae.d_sae={self.d_sae} cannot be cut into model.sae.k={self.k} equal "
                f"groups; make it a multiple of {self.k}"
            )

    def encode(self, x: Tensor, weights: Weights, *, backend: str = "auto") -> Codes:
        w = weights
        return encode_dense_rule(x, w.W_enc, w.b_enc, self._choose, w.pre_bias, backend=backend)

    def _choose(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        size = self.d_sae // self.k
        strongest = pre.unflatten(1, (self.k, size)).max(dim=2)  # of equal ones, the first
        starts = torch.arange(0, self.d_sae, size, device=pre.device)
        return strongest.values.relu(), strongest.indices + starts
