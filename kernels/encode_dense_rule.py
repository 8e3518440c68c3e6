"""values, indices = select(pre), per row, where pre = (x - b_dec) @ W_enc + b_enc.

`select` is any dense rule that takes a fixed number of slots from each row, written in plain
PyTorch. x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc
[d_sae], b_dec [d_in], all of one dtype. Pre-activations exist only for a bounded chunk of rows. For
16-bit inputs they are fp32 sums on the CPU, and values are rounded last; on the GPU they are
rounded first, as in `encode_topk`.

Backward: `encoder_backward`, with g = dL/dvalues where the value is not 0, else 0. Saved for
backward: x - b_dec, W_enc, values and the pairs. A selected NaN comes out as NaN, with gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sae_kernels import reference
from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encoder_backward import SelectedPreActs
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import row_grads_of

Select = Callable[[Tensor], tuple[Tensor, Tensor]]


def encode_dense_rule(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    select: Select,
    b_dec: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Codes:
    """Return the slots that `select` takes of (x - b_dec) @ W_enc + b_enc.

    Args:
        x, W_enc, b_enc, b_dec, backend: As in `encode_topk`.
        select: select(pre [rows, d_sae]) returns (values, int64 indices), both [rows, k]: the
            entries of `pre` at distinct indices of the row, or 0 for a slot that stays empty. It is
            called without a graph on a few rows at a time, and must treat all rows alike. It must
            not keep `pre`, whose memory is reused.

    Returns:
        Codes with values [batch, k] of either sign, differentiable once in x, W_enc, b_enc and
        b_dec. An empty slot gets no gradient. autocast has no effect.

    Raises:
        ValueError: The backend is unknown, or `select` does not return two tensors of one shape
            with one row for each row of `pre`.
    """
    d_sae = W_enc.shape[1]
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_dense_rule(x, W_enc, b_enc, select, b_dec)
    if backend == "triton":
        from sae_kernels.gpu.pre_acts import pre_acts_chunks
    else:
        from sae_kernels.cpu.pre_acts import pre_acts_chunks
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        centred = x if b_dec is None else x - b_dec
        # For an empty batch, only `select` knows k.
        parts = [] if len(x) else [_checked(select, centred.new_empty(0, d_sae), x.dtype)]
        for _, pre in pre_acts_chunks(centred, W_enc.t().contiguous(), b_enc):
            parts.append(_checked(select, pre, x.dtype))
            del pre  # otherwise it would be alive while the next chunk is computed
        values, indices = (torch.cat(chunks) for chunks in zip(*parts, strict=True))
    pairs = Pairs(indices, None, d_sae)
    codes = Codes(values, indices, d_sae, _pairs=pairs)
    sums, row_grads = pair_sums(backend), row_grads_of(W_enc)
    values = SelectedPreActs.apply(x, W_enc, b_enc, b_dec, centred, codes, sums, row_grads)
    return Codes(values, indices, d_sae, _pairs=pairs)


def _checked(select: Select, pre: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what `select` takes of `pre`, with values in `dtype`, or raise ValueError."""
    values, indices = select(pre)
    if values.dim() != 2 or values.shape != indices.shape or len(values) != len(pre):
        raise ValueError(
            f"for {len(pre)} rows, the rule returned values {tuple(values.shape)} and indices "
            f"{tuple(indices.shape)}; both must be [rows, k]"
        )
    return values.to(dtype), indices


def largest(scores: Tensor, k: int, *, backend: str = "auto") -> Tensor:
    """Return the columns of the k largest scores of each row, for use in a dense rule.

    NaN counts as the largest. A tie at the k-th place goes to the lowest index, except among zeros,
    whose order is unspecified. The order of the k is unspecified too. With triton nothing waits for
    the device.

    Args:
        scores: Shape [rows, d_sae], not negative.
        k: The number of columns, 1..d_sae.
        backend: As in `decode`.

    Returns:
        int64 [rows, k].
    """
    backend = resolve(backend, scores)
    if backend == "reference":
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    if backend == "triton":
        from sae_kernels.gpu.encode_topk import largest as largest_of_rows
    else:
        from sae_kernels.cpu.encode_topk import largest as largest_of_rows
    return largest_of_rows(scores, k)
