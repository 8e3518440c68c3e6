"""The n largest pre-activations of a batch (BatchTopK), exactly, on CPU.

A flat position is row * d_sae + column. NaN counts as the largest value. `gpu.encode_batch_topk`
has the same function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.cpu.encode_threshold import positions_above
from sae_kernels.cpu.pre_acts import pre_acts_chunks
from sae_kernels.slots import Slots, slots_from_positions


def _safe_floor(pre: Tensor, n: int) -> Tensor | float:
    """Return a floor that at least n positive elements of `pre` exceed, and not many more, or 0.

    It lies just below the n-th largest of the maxima of strided groups, which are n elements
    themselves. Two groups for each of the n let 1.4 n elements through if values are independent.
    """
    rows, d_sae = pre.shape
    size = pre.numel() // (2 * n)
    if size < 4:
        return 0.0
    groups = d_sae // size
    maxima = pre[:, : groups * size].unflatten(1, (size, groups)).amax(1).flatten()
    least = maxima.kthvalue(len(maxima) - n + 1).values
    return torch.nextafter(least, torch.zeros_like(least)).nan_to_num(torch.inf).clamp_(min=0)


def _select_largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the ascending positions of the n largest values, and the least of these values.

    Of equal values the first ones are taken. All values must be positive or NaN, so that their bit
    patterns have the order of the values.
    """
    integers = torch.int64 if values.dtype == torch.float64 else torch.int32
    keys = values.view(integers).masked_fill(values.isnan(), torch.iinfo(integers).max)
    least = keys.kthvalue(len(keys) - n + 1).values
    above, equal = keys > least, keys == least
    room = n - above.sum()
    selected = (above | (equal & (equal.cumsum(0) <= room))).nonzero().squeeze(1)
    return selected, least.view(values.dtype)


def largest(centred: Tensor, W_rows: Tensor, bias: Tensor, n: int) -> Slots:
    """Return the n largest positive pre-activations of the batch; ties go to the lowest position.

    It takes one sweep and is exact. The n largest so far are kept, and of the next chunk only what
    exceeds the least of them is compared: an equal value has a higher position and loses. Until n
    are kept, the floor is 0 or what the chunk itself allows. At most n values and a chunk are held.
    n must be at least the number of rows.
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    acc_dtype = torch.promote_types(centred.dtype, torch.float32)
    positions, values = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=acc_dtype)
    floor: Tensor | float = 0.0
    for rows, pre in pre_acts_chunks(centred, W_rows, bias):
        if len(positions) < n:
            floor = _safe_floor(pre, n)
        candidates = positions_above(pre, floor)
        values = torch.cat([values, pre.flatten().index_select(0, candidates)])
        positions = torch.cat([positions, candidates.add_(rows.start * d_sae)])
        del pre
        if len(positions) > n:
            selected, least = _select_largest(values, n)
            positions, values = positions[selected], values[selected]
            floor = least.nan_to_num(torch.inf, posinf=torch.inf)
    missing = (0, n - len(positions))
    positions = torch.nn.functional.pad(positions, missing, value=batch * d_sae)
    values = torch.nn.functional.pad(values, missing, value=-torch.inf)
    return slots_from_positions(positions, values, batch, d_sae)
