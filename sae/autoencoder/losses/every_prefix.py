"""HierarchicalTopK: codes cut to any number of latents reconstruct (Balagansky et al. 2025)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

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
    """(1/k) sum_j FVU of the reconstruction from the j largest codes of each token, j = 1..k.

    Source: 2505.24473. This term replaces FVU. It needs a rule with k slots for every token.
    Codes are ordered by magnitude; equal ones by latent.

    Args:
        coefficient: Weight in the loss.
    """

    coefficient: float = 1.0

    full_decoder_gradient: ClassVar[bool] = True

    def check(self, sae: "SAE") -> None:
        with torch.no_grad():
            row = sae.b_dec.new_zeros(1, sae.d_in * sae.site.groups)
            ragged = sae.encode_training(row).codes.offsets is not None
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
    """Return how many codes of its token come before each slot, int64 [batch, k]."""
    # The order of slots is not specified, so ties are broken by latent.
    order = codes.indices.argsort(dim=1)
    sizes = codes.values.detach().abs().gather(1, order)
    sorted_codes = replace(codes, values=sizes, indices=codes.indices.gather(1, order), _pairs=None)
    return torch.empty_like(order).scatter_(1, order, rank_levels(sorted_codes))
