"""Latents in groups, each of which encodes on its own: cross-layer transcoders."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.autoencoder.sparsity import EncoderOutput
from sae_kernels.codes import Codes


def joined(parts: list[EncoderOutput]) -> EncoderOutput:
    """The codes of all groups, group i's latents after those of the groups before it."""
    order = _order([part.codes for part in parts])
    codes = _together([part.codes for part in parts], order)
    gates = gate_codes = None
    if parts[0].gates is not None:
        gates = _reordered([part.gates for part in parts], order)
    if parts[0].gate_codes is not None:
        gate_codes = _together([part.gate_codes for part in parts], order)
    return EncoderOutput(codes, gates, gate_codes, parts)


def _order(parts: list[Codes]) -> Tensor | None:
    """Slots of all parts, end to end, row by row; None where each row has k slots of each part.
    Padding goes last."""
    if parts[0].offsets is None:
        return None
    rows = torch.cat([part.by_latent().token_of_slot for part in parts])
    places = [torch.arange(part.values.numel(), device=rows.device) for part in parts]
    padding = torch.cat([at >= part.offsets[-1] for at, part in zip(places, parts, strict=True)])
    return torch.where(padding, parts[0].batch, rows).argsort(stable=True)


def _reordered(some: list[Tensor], order: Tensor | None) -> Tensor:
    return torch.cat(some, dim=1) if order is None else torch.cat(some)[order]


def _together(parts: list[Codes], order: Tensor | None) -> Codes:
    first = 0
    indices = []
    for part in parts:
        indices.append(part.indices + first)
        first += part.d_sae
    values = _reordered([part.values for part in parts], order)
    offsets = None if order is None else sum(part.offsets for part in parts)
    dropped = None if parts[0].dropped is None else sum(part.dropped for part in parts)
    return Codes(values, _reordered(indices, order), first, offsets, dropped)
