"""values, indices = relu of the k * batch largest of pre = (x - b_dec) @ W_enc + b_enc, of a batch.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc [d_sae],
b_dec [d_in], all of one dtype. Selection is exact: what is kept is what a stable descending sort of
the whole batch, row after row, has among its first k * batch, as far as it is positive; so a tie at
the cut goes to the lowest (row, column). On CPU bf16 is multiplied into fp32, selected in fp32 and
rounded last; Triton selects from the product as it is rounded to the inputs' dtype.
Pre-activations exist for a bounded chunk of rows only.

Backward: `encoder_backward`, with g = dL/dvalues where the value is positive, else 0. Saved for it:
x - b_dec, W_enc, values and the pairs.

Not finite: NaN counts as the largest value and comes out as NaN, with gradient 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels import reference
from sae_kernels.backend import compaction, pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encoder_backward import Selected
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import deferred


def encode_batch_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Codes:
    """relu of the k * batch largest of (x - b_dec) @ W_enc + b_enc: BatchTopK (Bussmann et al.
    2024, arXiv 2412.06410), where k is what a row has on average.

    x [batch, d_in], W_enc [d_in, d_sae] (fast when W_enc.t() is contiguous), b_enc [d_sae], b_dec
    [d_in] or None. Returns ragged Codes of exactly k * batch slots, ordered by (row, column),
    differentiable once in x, W_enc, b_enc and b_dec; where fewer pre-activations are positive the
    last slots are padding. Nothing waits for the device. autocast has no effect.

    The smallest kept value, from which the threshold at inference is averaged, is on the device as
    torch.where(codes.values > 0, codes.values, torch.inf).amin(): inf where nothing fired.

    backend: as in `decode`. Raises ValueError for k outside 1..d_sae and for an unknown backend.
    """
    d_sae = W_enc.shape[1]
    if not 1 <= k <= d_sae:
        raise ValueError(f"k={k} must lie between 1 and d_sae={d_sae}")
    if torch.compiler.is_compiling() and backend != "reference":
        from sae_kernels.encode_ops import encode_batch_topk_op

        values, indices, offsets = encode_batch_topk_op(x, W_enc, b_enc, b_dec, k, backend)
        return Codes(values, indices, d_sae, offsets)
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_batch_topk(x, W_enc, b_enc, k, b_dec)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        centred = x if b_dec is None else x - b_dec
        compact = compaction(backend)
        slots = compact.largest(centred, W_enc.t().contiguous(), b_enc, k * len(x))
        values = slots.pre.relu().to(x.dtype)
    pairs = Pairs(slots.indices, slots.offsets, d_sae)
    codes = Codes(values, slots.indices, d_sae, slots.offsets, _pairs=pairs)
    sums, sink = pair_sums(backend), deferred(W_enc)
    codes.values = Selected.apply(x, W_enc, b_enc, b_dec, centred, codes, sums, sink)
    return codes
