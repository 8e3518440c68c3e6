"""GroupMax: the strongest latent of each group fires (a hard local winner-take-all)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderWeights
from sae.autoencoder.sparsity.fixed_k import FixedK
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.encode_dense_rule import encode_dense_rule


@dataclass(frozen=True, kw_only=True)
class GroupMax(FixedK):
    """acts = relu of the largest pre-activation in each of k groups, (x - b_dec) W_enc + b_enc.

    Group i is the i-th run of d_sae / k latents. Selection is cheaper than in TopK, and no two
    latents of one group ever fire together. Ties go to the lowest index.

    Args:
        d_sae: Number of latents; a multiple of k.
        k: Number of groups, and so the most latents that fire on one activation. Fewer fire if the
            largest of a group is not positive.
    """

    d_sae: int
    k: int

    permutable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_sae % self.k:
            raise UserError(
                f"model.sae.d_sae={self.d_sae} cannot be divided into model.sae.k={self.k} equal "
                "groups; "
                f"make it a multiple of {self.k}"
            )

    def with_l0(self, l0: int) -> Self | None:
        return None if self.d_sae % l0 else replace(self, k=l0)

    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        w = weights
        return encode_dense_rule(x, w.W_enc, w.b_enc, self._select, w.pre_bias, backend=backend)

    def _select(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        size = self.d_sae // self.k
        strongest = pre.unflatten(1, (self.k, size)).max(dim=2)  # the first of equal ones
        starts = torch.arange(0, self.d_sae, size, device=pre.device)
        return strongest.values.relu(), strongest.indices + starts
