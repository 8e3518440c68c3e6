"""A model's activations at chosen positions, gathered into one tensor per hook."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.activations.model import ActivationModel
from sae.activations.tokens import Contexts


def gather(
    model: ActivationModel, contexts: Contexts, goal: Tensor, n: int, rows: int
) -> dict[str, Tensor]:
    """hook -> [n, width] on the model's device, by forward passes of at most `rows` rows.

    goal [rows, ctx] int64 on the CPU: the row of the result that a position goes to, or -1; each of
    0 ... n - 1 occurs once.
    """
    device, dtype = model.device, model.dtype
    out = {
        hook: torch.empty(n, width, dtype=dtype, device=device)
        for hook, width in model.widths.items()
    }
    lengths = contexts.attention_mask.sum(dim=1)
    order = torch.argsort(lengths, stable=True)  # rows of like length together: less padding
    for chunk in order.split(rows):
        longest = int(lengths[chunk].max())
        mask = contexts.attention_mask[chunk, :longest]
        found = model.activations(contexts.tokens[chunk, :longest], mask)
        to = goal[chunk, :longest].flatten()
        source = (to >= 0).nonzero().squeeze(1)
        to = to[source].to(device, non_blocking=True)
        source = source.to(device, non_blocking=True)
        for hook, x in found.items():
            out[hook].index_copy_(0, to, x.flatten(0, 1).index_select(0, source))
    return out


def instead(good: Tensor) -> Tensor:
    """Row numbers 0, 1, ..., with good ones, evenly spread, in the places of those not `good`."""
    keep = good.nonzero().squeeze(1)
    chosen = torch.arange(len(good), device=good.device)
    bad = len(good) - len(keep)
    chosen[~good] = keep[torch.arange(bad, device=good.device) * len(keep) // bad]
    return chosen
