"""The forward pass of `encode_topk` on CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae_kernels.cpu.pre_acts import pre_acts_chunks


def _break_ties(pre: Tensor, kth: Tensor, k: int) -> Tensor:
    """Return the columns above the k-th largest value, then those equal to it from the left.

    pre [rows, d_sae], kth [rows, 1]; int64 [rows, k].
    """
    above = ~(pre <= kth)  # NaN too
    equal = pre == kth
    room = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)


def select_topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return relu of the k largest values of each row and their columns, both [rows, k].

    The columns are searched in strided groups: column c is in group c mod n. The groups with the
    m largest maxima hold every element above the m-th largest maximum, so only their members are
    compared. k + 1 values are taken: if the k-th equals the next one, torch.topk's choice between
    them is arbitrary and is replaced.
    """
    d_sae = pre.shape[1]
    keep = min(k + 1, d_sae)
    # A power of two near the least number of maxima plus candidates, d_sae / size + keep * size.
    size = 2 ** round(math.log2(d_sae / keep) / 2)
    groups = d_sae // size
    if size >= 4:
        used = groups * size
        maxima = pre[:, :used].unflatten(1, (size, groups)).amax(1)
        leading = maxima.topk(keep, sorted=False).indices
        members = torch.arange(0, used, groups, device=pre.device)
        columns = (leading[:, None, :] + members[:, None]).flatten(1)
        if used < d_sae:
            rest = torch.arange(used, d_sae, device=pre.device).expand(len(pre), -1)
            columns = torch.cat([columns, rest], 1)
        values, order = pre.gather(1, columns).topk(keep)
        indices = columns.gather(1, order)
    else:
        values, indices = pre.topk(keep)
    if keep > k:
        kth = values[:, k - 1]
        tied = (kth == values[:, k]) & (kth > 0)
        if tied.any():
            columns = _break_ties(pre[tied], kth[tied, None], k)
            indices[tied, :k] = columns
            values[tied, :k] = pre[tied].gather(1, columns)
    return values[:, :k].relu(), indices[:, :k]


def largest(scores: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest scores of each row, int64 [rows, k]; scores >= 0."""
    return select_topk(scores, k)[1]


def forward(centred: Tensor, W_rows: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and int64 indices, both [batch, k], of the k largest of each row.

    centred [batch, d_in], W_rows [d_sae, d_in], b_enc [d_sae].
    """
    values = centred.new_empty(centred.shape[0], k)
    indices = torch.empty(centred.shape[0], k, dtype=torch.int64, device=centred.device)
    for rows, pre in pre_acts_chunks(centred, W_rows, b_enc):
        values[rows], indices[rows] = select_topk(pre, k)
        del pre  # otherwise it would be alive while the next chunk is computed
    return values, indices
