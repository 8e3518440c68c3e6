"""values, indices = relu of the k largest of pre = (x - b_dec) @ W_enc + b_enc, per row.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc [d_sae],
b_dec [d_in], all of one dtype. Selection is exact: the latents with a positive value are those of a
stable descending sort of the row, so a tie at the k-th place goes to the lowest index. bf16 is
multiplied into fp32, selected in fp32 and rounded last. Pre-activations exist for a bounded chunk
of rows only.

Backward, with g = dL/dvalues where the value is positive, else 0, and c = x - b_dec:
    dW_enc[:, j] = sum over the tokens of latent j of g * c[token],  db_enc[j] = the sum of those g,
    db_dec = -W_enc @ db_enc (tokens are summed first),
    dx[b] = sum over the slots of row b of g * W_enc[:, index].
Saved for it: c, W_enc, values and the pairs.

Not finite: NaN counts as the largest value, as in torch.topk, and comes out as NaN, with gradient
0; +inf is a value like any other; -inf is never positive.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels._backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.transpose import Pairs

# Pre-activations of one chunk: 16 MB of fp32 stay in the last-level cache between product and
# selection, and below the 32 MB from which glibc returns every freed block to the system, to be
# page-faulted in again.
CHUNK_ELEMENTS = 2**22
CHUNK_MIN_ROWS = 64


def _pre_acts(centred: Tensor, W_rows: Tensor, b_enc: Tensor) -> Tensor:
    """[rows, d_sae] from centred [rows, d_in] and W_rows [d_sae, d_in]."""
    if centred.dtype == torch.float32 and centred.device.type == "cpu" and _has_onednn():
        # 33 ms where MKL's takes 90 (2048 x 384 x 8192 in 256-row chunks, AVX-512 AMD, 2 cores).
        return torch.ops.mkldnn._linear_pointwise(centred, W_rows, b_enc, "none", [], "")
    return torch.addmm(b_enc, centred, W_rows.t())


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


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
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    values = centred.new_empty(batch, k)
    indices = torch.empty(batch, k, dtype=torch.int64, device=centred.device)
    if centred.dtype in (torch.bfloat16, torch.float16):
        W_rows, b_enc = W_rows.float(), b_enc.float()
    centred = centred.to(W_rows.dtype).contiguous()
    rows = max(CHUNK_ELEMENTS // d_sae, CHUNK_MIN_ROWS)
    for start in range(0, batch, rows):
        chunk = slice(start, start + rows)
        values[chunk], indices[chunk] = _select(_pre_acts(centred[chunk], W_rows, b_enc), k)
    return values, indices


class _EncodeTopK(torch.autograd.Function):
    """Attaches the graph to codes that were already selected: the selection itself is constant."""

    @staticmethod
    def forward(
        ctx, x, W_enc, b_enc, b_dec, centred: Tensor, codes: Codes, sums: ModuleType
    ) -> Tensor:
        ctx.save_for_backward(centred, W_enc, codes.values)
        ctx.pairs, ctx.sums = codes.by_latent(), sums
        return codes.values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        centred, W_enc, values = ctx.saved_tensors
        need_x, need_W, need_b_enc, need_b_dec = ctx.needs_input_grad[:4]
        pairs, sums = ctx.pairs, ctx.sums
        gated = torch.where(values > 0, grad, 0).flatten()
        d_x = d_W = d_b_enc = d_b_dec = None
        if need_x:
            d_x = sums.sum_latents(pairs, gated, W_enc.t())
        if need_W:
            d_W = sums.sum_tokens(pairs, gated, centred).t()
        if need_b_enc or need_b_dec:
            d_b = sums.sum_weights(pairs, gated)
            d_b_enc = d_b.to(W_enc.dtype)
            if need_b_dec:
                wide = torch.promote_types(W_enc.dtype, torch.float32)
                with torch.autocast(grad.device.type, enabled=False):
                    d_b_dec = -(W_enc.to(wide) @ d_b.to(wide)).to(W_enc.dtype)
        return d_x, d_W, d_b_enc, d_b_dec, None, None, None


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
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_topk(x, W_enc, b_enc, k, b_dec)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        centred = x if b_dec is None else x - b_dec
        W_rows = W_enc.t().contiguous()
        if backend == "triton":
            from sae_kernels._triton_select import forward
        else:
            forward = _forward_torch
        values, indices = forward(centred, W_rows, b_enc, k)
    pairs = Pairs(indices, None, d_sae)
    codes = Codes(values, indices, d_sae, _pairs=pairs)
    values = _EncodeTopK.apply(x, W_enc, b_enc, b_dec, centred, codes, pair_sums(backend))
    return Codes(values, indices, d_sae, _pairs=pairs)
