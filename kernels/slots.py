"""The slots of a batch before they become `Codes`: what a ragged encoder's two halves return."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Slots(NamedTuple):
    """The slots of a batch, ordered by (row, column).

    Attributes:
        indices: The latent of each slot, int64 [n]; 0 in padding.
        offsets: The slots of row b are offsets[b] : offsets[b + 1], int64 [batch + 1]. Slots from
            offsets[-1] on are padding.
        pre: The pre-activation of each slot, [n], fp32 or wider; -inf in padding.
        dropped: The number of slots that did not fit into a capacity, int64 0-d, or None without
            a capacity.
    """

    indices: Tensor
    offsets: Tensor
    pre: Tensor
    dropped: Tensor | None = None


def slots_from_positions(positions: Tensor, pre: Tensor, batch: int, d_sae: int) -> Slots:
    """Return the slots at flat positions (row * d_sae + column).

    Args:
        positions: int64 [n], ascending; batch * d_sae in padding.
        pre: The pre-activations there, [n].
        batch: The number of rows.
        d_sae: The number of columns.
    """
    bounds = torch.arange(batch + 1, device=positions.device) * d_sae
    return Slots(positions % d_sae, torch.searchsorted(positions, bounds), pre)
