"""values, indices = relu of the k * batch largest of pre = (x - b_dec) @ W_enc + b_enc, of a batch.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc [d_sae],
b_dec [d_in], all of one dtype. Selection is exact: the slots are those that a stable descending
sort of the whole batch, row after row, has among its first k * batch, as far as they are positive.
A tie at the cut goes to the lowest (row, column). On CPU 16-bit inputs are multiplied into fp32,
selected in fp32 and rounded last; Triton selects from the product as rounded to the inputs' dtype.
Pre-activations exist only for a bounded chunk of rows.

Backward: `encoder_backward`, with g = dL/dvalues where the value is positive, else 0. Saved for
backward: x - b_dec, W_enc, values and the pairs.

Non-finite values: NaN counts as the largest value and comes out as NaN, with gradient 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from sae_kernels import reference
from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encoder_backward import (
    SelectedPreActs,
    fake_ragged,
    ragged_offsets,
    register_encoder_backward,
)
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import row_grads_of


def encode_batch_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Codes:
    """Return relu of the k * batch largest of (x - b_dec) @ W_enc + b_enc, as ragged codes.

    The smallest selected value, whose average becomes the threshold at inference, is on the device:
    torch.where(codes.values > 0, codes.values, torch.inf).amin(), which is inf if nothing fired.
    Source: BatchTopK, Bussmann et al. 2024, arXiv 2412.06410.

    Args:
        x, W_enc, b_enc, b_dec, backend: As in `encode_topk`.
        k: The mean number of slots per row, 1..d_sae.

    Returns:
        Codes of exactly k * batch slots, ordered by (row, column), differentiable once in x, W_enc,
        b_enc and b_dec. If fewer pre-activations are positive, the last slots are padding. Nothing
        waits for the device. autocast has no effect.

    Raises:
        ValueError: k is not in 1..d_sae, or the backend is unknown.
    """
    d_sae = W_enc.shape[1]
    if not 1 <= k <= d_sae:
        raise ValueError(f"k={k} must lie between 1 and d_sae={d_sae}")
    if torch.compiler.is_compiling() and backend != "reference":
        values, indices, offsets = encode_batch_topk_op(x, W_enc, b_enc, b_dec, k, backend)
        return Codes(values, indices, d_sae, offsets)
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_batch_topk(x, W_enc, b_enc, k, b_dec)
    if backend == "triton":
        from sae_kernels.gpu.encode_batch_topk import largest
    else:
        from sae_kernels.cpu.encode_batch_topk import largest
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        centred = x if b_dec is None else x - b_dec
        slots = largest(centred, W_enc.t().contiguous(), b_enc, k * len(x))
        values = slots.pre.relu().to(x.dtype)
    pairs = Pairs(slots.indices, slots.offsets, d_sae)
    codes = Codes(values, slots.indices, d_sae, slots.offsets, _pairs=pairs)
    sums, row_grads = pair_sums(backend), row_grads_of(W_enc)
    codes.values = SelectedPreActs.apply(x, W_enc, b_enc, b_dec, centred, codes, sums, row_grads)
    return codes


@custom_op("sae_kernels::encode_batch_topk", mutates_args=())
def encode_batch_topk_op(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, k: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    codes = encode_batch_topk(x, W_enc, b_enc, k, b_dec, backend=backend)
    return codes.values, codes.indices, ragged_offsets(codes)


@encode_batch_topk_op.register_fake
def _(x, W_enc, b_enc, b_dec, k, backend):
    return fake_ragged(x, x.shape[0] * k)


register_encoder_backward(encode_batch_topk_op)
