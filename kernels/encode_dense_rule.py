"""values, indices = choose(pre), per row, where pre = (x - b_dec) @ W_enc + b_enc.

`choose` is any dense rule that takes a fixed number of slots from each row, written in plain torch.
x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc [d_sae],
b_dec [d_in], all of one dtype. Pre-activations exist for a bounded chunk of rows only; of 16-bit
inputs they are fp32 sums on the CPU, and values are rounded last; on the GPU they are rounded
first, as in `encode_topk`.

Backward: `encoder_backward`, with g = dL/dvalues where the value is not 0, else 0. Saved for it:
x - b_dec, W_enc, values and the pairs. A NaN comes out as NaN where it is chosen, with gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sae_kernels import reference
from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encode_topk import _select
from sae_kernels.encoder_backward import Selected
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import deferred

Choose = Callable[[Tensor], tuple[Tensor, Tensor]]


def encode_dense_rule(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    choose: Choose,
    b_dec: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Codes:
    """The slots that `choose` takes of (x - b_dec) @ W_enc + b_enc.

    x [batch, d_in], W_enc [d_in, d_sae] (fast when W_enc.t() is contiguous), b_enc [d_sae], b_dec
    [d_in] or None. choose(pre [rows, d_sae]) -> (values, int64 indices), both [rows, k], is called
    without a graph on a few rows at a time, which it must treat alike: pre itself at distinct
    indices of the row, or 0 where a slot is to be empty. It keeps nothing of pre, whose memory is
    used again. Returns Codes with values [batch, k], of either sign, differentiable once in x,
    W_enc, b_enc and b_dec; an empty slot gets no gradient. autocast has no effect.

    backend: as in `decode`. Raises ValueError for an unknown backend, and where what is chosen is
    not two tensors of one shape with a row for each of pre.
    """
    d_sae = W_enc.shape[1]
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_dense_rule(x, W_enc, b_enc, choose, b_dec)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        centred = x if b_dec is None else x - b_dec
        if backend == "triton":
            from sae_kernels.gpu.pre_acts import pre_acts_chunks
        else:
            from sae_kernels.cpu.pre_acts import pre_acts_chunks
        # No row at all: choose alone knows k.
        parts = [] if len(x) else [_checked(choose, centred.new_empty(0, d_sae), x.dtype)]
        for _, pre in pre_acts_chunks(centred, W_enc.t().contiguous(), b_enc):
            parts.append(_checked(choose, pre, x.dtype))
            del pre  # or it would live on while the next is made
        values, indices = (torch.cat(some) for some in zip(*parts, strict=True))
    pairs = Pairs(indices, None, d_sae)
    codes = Codes(values, indices, d_sae, _pairs=pairs)
    sums, sink = pair_sums(backend), deferred(W_enc)
    values = Selected.apply(x, W_enc, b_enc, b_dec, centred, codes, sums, sink)
    return Codes(values, indices, d_sae, _pairs=pairs)


def _checked(choose: Choose, pre: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values, indices = choose(pre)
    if values.dim() != 2 or values.shape != indices.shape or len(values) != len(pre):
        raise ValueError(
            f"of {len(pre)} rows, choose took values {tuple(values.shape)} and indices "
            f"{tuple(indices.shape)}; both must be [rows, k]"
        )
    return values.to(dtype), indices


def largest(scores: Tensor, k: int, *, backend: str = "auto") -> Tensor:
    """int64 [rows, k]: where the k largest of each row of scores [rows, d_sae] >= 0 lie.

    NaN counts as the largest. A tie at the k-th place goes to the lowest index, unless it is one
    of zeros, whose order is unspecified; so is that of the k. For a `choose` to be made of. backend
    as in `decode`; with triton nothing waits for the device.
    """
    backend = resolve(backend, scores)
    if backend == "reference":
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    if backend == "torch":
        return _select(scores, k)[1]
    from sae_kernels.gpu.encode_topk import largest as on_gpu

    return on_gpu(scores, k)
