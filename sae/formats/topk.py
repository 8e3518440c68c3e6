"""Helpers of the formats that hold TopK SAEs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.errors import UserError


def topk_sae(
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    *,
    k: int,
    hook: str | None,
    metadata: dict[str, Any],
) -> SAE:
    """Return a TopK SAE with these weights.

    Args:
        W_enc: Shape [d_in, d_sae].
        b_enc: Shape [d_sae].
        W_dec: Shape [d_sae, d_in].
        b_dec: Shape [d_in].
        k: The most latents that fire on one activation.
        hook: The hook whose activations the SAE reads, if it is known.
        metadata: The metadata of the SAE.
    """
    sae = SAE(
        len(b_dec),
        TopK(d_sae=len(b_enc), k=k),
        site=Autoencoder(hook=hook),
        dtype=W_dec.dtype,
        metadata=metadata,
    )
    with torch.no_grad():
        # Copy, do not assign: W_enc stays latent-major in memory.
        sae.W_enc.copy_(W_enc)
        sae.b_enc.copy_(b_enc)
        sae.W_dec.copy_(W_dec)
        sae.b_dec.copy_(b_dec)
    return sae


def require_topk(sae: SAE, format: str) -> TopK:
    """Return the sparsity rule of `sae`. Raises UserError unless it is a TopK autoencoder."""
    rule = sae.sparsity
    # Subclasses may encode differently, so the types must be equal.
    if type(rule) is not TopK or type(sae.site) is not Autoencoder:
        raise UserError(
            f"this SAE is {type(sae.site).__name__}+{type(rule).__name__}; "
            f"the format {format} can hold only Autoencoder+TopK"
        )
    return rule
