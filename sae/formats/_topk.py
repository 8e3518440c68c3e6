"""Code shared by the TopK formats: an SAE from four tensors, and which SAEs can be written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.errors import UserError


def built(
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    *,
    k: int,
    hook: str | None,
    metadata: dict[str, Any],
) -> SAE:
    """An SAE with W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]."""
    sae = SAE(
        len(b_dec),
        TopK(d_sae=len(b_enc), k=k),
        site=Autoencoder(hook=hook),
        dtype=W_dec.dtype,
        metadata=metadata,
    )
    parameters = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    with torch.no_grad():
        # Copied, not assigned: W_enc keeps its latent-major memory.
        for name, value in parameters.items():
            getattr(sae, name).copy_(value)
    return sae


def checked_topk(sae: SAE, format: str) -> TopK:
    """The sparsity rule of `sae`, or a UserError when `format` cannot hold this SAE."""
    if type(sae.sparsity) is not TopK or type(sae.site) is not Autoencoder:
        raise UserError(
            f"this SAE is {type(sae.site).__name__}+{type(sae.sparsity).__name__}; "
            f"the format {format} is written for Autoencoder+TopK only"
        )
    return sae.sparsity
