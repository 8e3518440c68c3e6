"""values, indices = relu of the k largest of pre = (x - b_dec) @ W_enc + b_enc, per row.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc [d_sae],
b_dec [d_in], all of one dtype. Selection is exact: the latents with a positive value are those of a
stable descending sort of the row, so a tie at the k-th place goes to the lowest index. 16-bit
inputs are summed in fp32; the CPU selects from the sums and rounds last, the GPU rounds them first,
as autocast would, and selects from what is rounded. Pre-activations exist for a bounded chunk of
rows only.

Backward: `encoder_backward`, with g = dL/dvalues where the value is positive, else 0. Saved for it:
x - b_dec, W_enc, values and the pairs.

Not finite: NaN counts as the largest value, as in torch.topk, and comes out as NaN, with gradient
0; +inf is a value like any other; -inf is never positive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae_kernels import reference
from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.cpu.pre_acts import pre_acts_chunks
from sae_kernels.encoder_backward import Selected
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import deferred


def _break_ties(pre: Tensor, kth: Tensor, k: int) -> Tensor:
    """[rows, k]: everything above the k-th largest value, then what equals it from the left."""
    above = ~(pre <= kth)  # NaN too
    equal = pre == kth
    room = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)


def _select(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """relu of the k largest of each row, and where they are. pre [rows, d_sae].

    Strided groups first: column c is in group c mod n. The wanted groups are those with the largest
    maxima, because every element above the m-th largest maximum lies in one of the m groups that
    lead. One more than k is kept: where the k-th and the next are equal, torch.topk's choice is
    arbitrary and is made again.
    """
    d_sae = pre.shape[1]
    keep = min(k + 1, d_sae)
    # A power of two near the least number of maxima plus candidates, d_sae / size + keep * size.
    size = 2 ** round(math.log2(d_sae / keep) / 2)
    groups = d_sae // size
    if size >= 4:
        used = groups * size
        maxima = pre[:, :used].unflatten(1, (size, groups)).amax(1)
        lead = maxima.topk(keep, sorted=False).indices
        members = torch.arange(0, used, groups, device=pre.device)
        columns = (lead[:, None, :] + members[:, None]).flatten(1)
        if used < d_sae:
            rest = torch.arange(used, d_sae, device=pre.device).expand(len(pre), -1)
            columns = torch.cat([columns, rest], 1)
        values, place = pre.gather(1, columns).topk(keep)
        indices = columns.gather(1, place)
    else:
        values, indices = pre.topk(keep)
    if keep > k:
        kth = values[:, k - 1]
        tied = (kth == values[:, k]) & (kth > 0)
        if tied.any():
            again = _break_ties(pre[tied], kth[tied, None], k)
            indices[tied, :k] = again
            values[tied, :k] = pre[tied].gather(1, again)
    return values[:, :k].relu(), indices[:, :k]


def _forward_torch(centred: Tensor, W_rows: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = centred.new_empty(centred.shape[0], k)
    indices = torch.empty(centred.shape[0], k, dtype=torch.int64, device=centred.device)
    for rows, pre in pre_acts_chunks(centred, W_rows, b_enc):
        values[rows], indices[rows] = _select(pre, k)
        del pre  # or it would live on while the next is made
    return values, indices


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Codes:
    """relu of the k largest of (x - b_dec) @ W_enc + b_enc: TopK (Gao et al. 2024, section 2.3).

    x [batch, d_in], W_enc [d_in, d_sae] (fast when W_enc.t() is contiguous), b_enc [d_sae], b_dec
    [d_in] or None. Returns Codes with values [batch, k] >= 0, differentiable once in x, W_enc,
    b_enc and b_dec, and distinct indices within a row; W_enc's gradient is latent-major too. A row
    with fewer than k positive pre-activations has empty slots, which get no gradient. The order of
    a row's slots is fixed for given inputs and backend, and otherwise unspecified. autocast has no
    effect: the inputs' dtype, which is one for all, decides.

    backend: as in `decode`. Raises ValueError for k outside 1..d_sae and for an unknown backend.
    """
    d_sae = W_enc.shape[1]
    if not 1 <= k <= d_sae:
        raise ValueError(f"k={k} must lie between 1 and d_sae={d_sae}")
    if torch.compiler.is_compiling() and backend != "reference":
        from sae_kernels.encode_ops import encode_topk_op

        return Codes(*encode_topk_op(x, W_enc, b_enc, b_dec, k, backend), d_sae)
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_topk(x, W_enc, b_enc, k, b_dec)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        centred = x if b_dec is None else x - b_dec
        W_rows = W_enc.t().contiguous()
        if backend == "triton":
            from sae_kernels.gpu.encode_topk import forward
        else:
            forward = _forward_torch
        values, indices = forward(centred, W_rows, b_enc, k)
    pairs = Pairs(indices, None, d_sae)
    codes = Codes(values, indices, d_sae, _pairs=pairs)
    sums, sink = pair_sums(backend), deferred(W_enc)
    values = Selected.apply(x, W_enc, b_enc, b_dec, centred, codes, sums, sink)
    return Codes(values, indices, d_sae, _pairs=pairs)
