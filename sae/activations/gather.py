"""Gathers a model's activations at chosen positions into one tensor per hook."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from sae.activations.model import ActivationModel
from sae.activations.tokens import Contexts


def gather(
    model: ActivationModel, contexts: Contexts, destination: Tensor, n: int, batch_rows: int
) -> dict[str, Tensor]:
    """Run the model on contexts and return its activations at chosen positions.

    Args:
        model: The model with its hooks.
        contexts: What it reads.
        destination: int64 [rows, ctx] on the CPU: the row of the result that a position goes to,
            or -1 if it is not wanted. Each of 0 ... n - 1 occurs once.
        n: Number of rows of the result.
        batch_rows: Most contexts in one forward pass.

    Returns:
        Hook -> [n, width], on the model's device and in its dtype.
    """
    device, dtype = model.device, model.dtype
    out = {
        hook: torch.empty(n, width, dtype=dtype, device=device)
        for hook, width in model.widths.items()
    }
    lengths = contexts.attention_mask.sum(dim=1)
    order = torch.argsort(lengths, stable=True)  # contexts of similar length together: less padding
    for chunk in order.split(batch_rows):
        longest = int(lengths[chunk].max())
        mask = contexts.attention_mask[chunk, :longest]
        acts = model.activations(contexts.tokens[chunk, :longest], mask)
        target = destination[chunk, :longest].flatten()
        source = (target >= 0).nonzero().squeeze(1)
        target = target[source].to(device, non_blocking=True)
        source = source.to(device, non_blocking=True)
        for hook, x in acts.items():
            flat = rearrange(x, "context position width -> (context position) width")
            out[hook].index_copy_(0, target, flat.index_select(0, source))
    return out


def replace_bad_rows(good: Tensor) -> Tensor:
    """Return row numbers that put evenly spread good rows in the places of bad ones.

    Args:
        good: bool [n], with at least one bad row.

    Returns:
        int64 [n]: i where row i is good, and the number of some good row elsewhere.
    """
    good_rows = good.nonzero().squeeze(1)
    rows = torch.arange(len(good), device=good.device)
    bad = len(good) - len(good_rows)
    rows[~good] = good_rows[torch.arange(bad, device=good.device) * len(good_rows) // bad]
    return rows
