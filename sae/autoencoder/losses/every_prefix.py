"""HierarchicalTopK: every number of latents up to k reconstructs (Balagansky et al. 2025)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.decode_prefixes import decode_prefixes, rank_levels

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE


@dataclass(frozen=True, kw_only=True)
class EveryPrefix(LossTerm):
    """(1/k) sum_j FVU of the reconstruction from the j largest codes of each token, j = 1..k
    (2505.24473). It takes FVU's place; for rules with k slots for every token.

    Largest by size; equal codes in the order of their latents.

    Args:
        coefficient: weight in the loss.
    """

    coefficient: float = 1.0

    def check(self, sae: "SAE") -> None:
        with torch.no_grad():
            one = sae.b_dec.new_zeros(1, sae.d_in * sae.site.groups)
            ragged = sae.encode_training(one).codes.offsets is not None
        if ragged:
            raise UserError(
                "model.losses EveryPrefix needs the same k for every token, which "
                f"{type(sae.sparsity).__name__} does not have; use TopK, or Matryoshka"
            )

    def __call__(self, forward: ForwardOutput) -> Tensor:
        sae, codes = forward.sae, forward.codes
        squares = decode_prefixes(
            codes, ranks(codes), codes.values.shape[1], sae.W_dec, sae.b_dec, forward.target,
            backend=forward.backend,
        )  # fmt: skip
        return squares.mean() / forward.variance


def ranks(codes: Codes) -> Tensor:
    """[batch, k]: how many codes of its token come before each."""
    # An encoder promises no order of slots, so ties are settled by latent.
    order = codes.indices.argsort(dim=1)
    sizes = codes.values.detach().abs().gather(1, order)
    sorted_codes = replace(codes, values=sizes, indices=codes.indices.gather(1, order), _pairs=None)
    return torch.empty_like(order).scatter_(1, order, rank_levels(sorted_codes))
