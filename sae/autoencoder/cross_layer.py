"""Join the codes of groups of latents that each encode a hook of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.autoencoder.sparsity import EncoderOutput
from sae_kernels.codes import Codes


def join_groups(parts: list[EncoderOutput]) -> EncoderOutput:
    """Return the codes of all groups; group i's latents come after those of earlier groups."""
    codes = [part.codes for part in parts]
    order = _row_order(codes)
    gates = gate_codes = None
    if parts[0].gates is not None:
        gates = _concatenate([part.gates for part in parts if part.gates is not None], order)
    if parts[0].gate_codes is not None:
        each = [part.gate_codes for part in parts if part.gate_codes is not None]
        gate_codes = _join_codes(each, order)
    return EncoderOutput(_join_codes(codes, order), gates, gate_codes, parts)


def _row_order(parts: list[Codes]) -> Tensor | None:
    """Return the order that sorts the slots of all parts, end to end, by row; padding goes last.

    Returns None if every part has a fixed number of slots per row.
    """
    if parts[0].offsets is None:
        return None
    rows, padding = [], []
    for part in parts:
        assert part.offsets is not None, "either all parts are ragged or none is"
        rows.append(part.by_latent().token_of_slot)
        slots = torch.arange(part.values.numel(), device=part.values.device)
        padding.append(slots >= part.offsets[-1])
    return torch.where(torch.cat(padding), parts[0].batch, torch.cat(rows)).argsort(stable=True)


def _concatenate(parts: list[Tensor], order: Tensor | None) -> Tensor:
    return torch.cat(parts, dim=1) if order is None else torch.cat(parts)[order]


def _sum(tensors: list[Tensor | None]) -> Tensor | None:
    """Return the sum, or None if any is None."""
    present = [tensor for tensor in tensors if tensor is not None]
    return sum(present[1:], present[0]) if len(present) == len(tensors) else None


def _join_codes(parts: list[Codes], order: Tensor | None) -> Codes:
    d_sae = 0
    indices = []
    for part in parts:
        indices.append(part.indices + d_sae)
        d_sae += part.d_sae
    values = _concatenate([part.values for part in parts], order)
    offsets = None if order is None else _sum([part.offsets for part in parts])
    dropped = _sum([part.dropped for part in parts])
    return Codes(values, _concatenate(indices, order), d_sae, offsets, dropped)
