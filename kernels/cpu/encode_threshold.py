"""Which pre-activations become slots where the rule is not TopK's, on CPU.

Two rules: everything above a floor (ReLU, JumpReLU, Gated) and the n largest of the whole batch
(BatchTopK). centred [batch, d_in], W_rows [d_sae, d_in], bias [d_sae], one dtype. Pre-activations
are made in fp32 (float64 for float64), a bounded chunk of rows at a time; of a chunk only the slots
stay. A *place* is row * d_sae + column. NaN counts as the largest value. `gpu.encode_threshold` has
the
same two functions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sae_kernels.cpu.pre_acts import pre_acts_chunks

_ALL = 0x0101010101010101  # eight times True


class Slots(NamedTuple):
    """The slots of a batch, ordered by place; those from offsets[-1] on are padding.

    indices int64 [n]; offsets int64 [batch + 1]; pre [n], at least fp32, -inf in padding, whose
    indices are 0. dropped: how many slots a capacity left out, int64 0-d, or None without one.
    """

    indices: Tensor
    offsets: Tensor
    pre: Tensor
    dropped: Tensor | None = None


def slots_of(places: Tensor, pre: Tensor, batch: int, d_sae: int) -> Slots:
    """places int64 [n] ascending, batch * d_sae in padding."""
    bounds = torch.arange(batch + 1, device=places.device) * d_sae
    return Slots(places % d_sae, torch.searchsorted(places, bounds), pre)


def _places_above(pre: Tensor, floor: Tensor | float) -> Tensor:
    """Positions in the flattened pre, ascending, of what is not <= floor: NaN is among them.

    floor: one number, or [d_sae]. Comparisons are looked at eight at a time, and one by one only
    where some hit: 3.4 ms where nonzero on all takes 5.0 and torch.topk's way 7.4 (512 x 8192, 32
    a row, one core). Where most words have a hit, that detour takes twice as long as nonzero.
    """
    count = pre.numel()
    below = torch.empty(-(-count // 8) * 8, dtype=torch.bool)
    below[count:] = True
    torch.le(pre, floor, out=below[:count].view_as(pre))
    words = (below.view(torch.int64) != _ALL).nonzero().squeeze(1)
    if 4 * len(words) > len(below) // 8:
        return below.logical_not_().nonzero().squeeze(1)
    word, byte = below.view(-1, 8)[words].logical_not_().nonzero().unbind(1)
    return words[word] * 8 + byte


def above_floor(
    centred: Tensor,
    W_rows: Tensor,
    bias: Tensor,
    floor: Tensor | float,
    capacity: int | None = None,
) -> Slots:
    """Every pre-activation above `floor`: one number, or [d_sae]. capacity is not used here."""
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    places = [torch.empty(0, dtype=torch.int64)]
    values = [torch.empty(0, dtype=torch.promote_types(centred.dtype, torch.float32))]
    for rows, pre in pre_acts_chunks(centred, W_rows, bias):
        found = _places_above(pre, floor)
        values.append(pre.flatten().index_select(0, found))
        places.append(found.add_(rows.start * d_sae))
        del pre
    return slots_of(torch.cat(places), torch.cat(values), batch, d_sae)


def _safe_floor(pre: Tensor, n: int) -> Tensor | float:
    """A floor above which lie n or more positive elements of pre, and not many more; else 0.

    Just below the n-th largest of the maxima of strided groups, which are n elements themselves.
    Two groups for each that is wanted let 1.4 n elements through where values are independent.
    """
    rows, d_sae = pre.shape
    size = pre.numel() // (2 * n)
    if size < 4:
        return 0.0
    groups = d_sae // size
    maxima = pre[:, : groups * size].unflatten(1, (size, groups)).amax(1).flatten()
    least = maxima.kthvalue(len(maxima) - n + 1).values
    return torch.nextafter(least, torch.zeros_like(least)).nan_to_num(torch.inf).clamp_(min=0)


def _largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Where the n largest are, ascending; of equal ones the first. And the least of them.

    All values are positive or NaN, so their bit patterns are in the order of the values.
    """
    integers = torch.int64 if values.dtype == torch.float64 else torch.int32
    keys = values.view(integers).masked_fill(values.isnan(), torch.iinfo(integers).max)
    least = keys.kthvalue(len(keys) - n + 1).values
    above, equal = keys > least, keys == least
    room = n - above.sum()
    kept = (above | (equal & (equal.cumsum(0) <= room))).nonzero().squeeze(1)
    return kept, least.view(values.dtype)


def largest(centred: Tensor, W_rows: Tensor, bias: Tensor, n: int) -> Slots:
    """The n largest positive pre-activations of the batch, n >= batch; ties go to the lowest place.

    Exact in one sweep. The n largest so far are kept, and of the next chunk only what is above the
    least of them is looked at: what equals it has a higher place and loses. Until n are kept the
    floor is 0, or what the chunk itself allows. No more than n and a chunk are ever held.
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    wide = torch.promote_types(centred.dtype, torch.float32)
    places, values = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=wide)
    for rows, pre in pre_acts_chunks(centred, W_rows, bias):
        if len(places) < n:
            floor = _safe_floor(pre, n)
        found = _places_above(pre, floor)
        values = torch.cat([values, pre.flatten().index_select(0, found)])
        places = torch.cat([places, found.add_(rows.start * d_sae)])
        del pre
        if len(places) > n:
            kept, least = _largest(values, n)
            places, values = places[kept], values[kept]
            floor = least.nan_to_num(torch.inf, posinf=torch.inf)
    missing = (0, n - len(places))
    places = torch.nn.functional.pad(places, missing, value=batch * d_sae)
    values = torch.nn.functional.pad(values, missing, value=-torch.inf)
    return slots_of(places, values, batch, d_sae)
