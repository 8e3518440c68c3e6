"""Custom ops for the encoders under torch.compile: `torch.ops.sae_kernels.encode_*`.

See `custom_op`. Gradients go to x, W_enc, b_enc and b_dec.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.custom_op import register_backward, select_needed
from sae_kernels.encode_batch_topk import encode_batch_topk
from sae_kernels.encode_threshold import encode_threshold
from sae_kernels.encode_topk import encode_topk
from sae_kernels.encoder_backward import encoder_grad
from sae_kernels.pairs import Pairs


@custom_op("sae_kernels::encode_topk", mutates_args=())
def encode_topk_op(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, k: int, backend: str
) -> tuple[Tensor, Tensor]:
    codes = encode_topk(x, W_enc, b_enc, k, b_dec, backend=backend)
    return codes.values, codes.indices


@encode_topk_op.register_fake
def _(x, W_enc, b_enc, b_dec, k, backend):
    # len() would turn a symbolic size into a number.
    shape = x.shape[0], k
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


@custom_op("sae_kernels::encode_batch_topk", mutates_args=())
def encode_batch_topk_op(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, k: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    codes = encode_batch_topk(x, W_enc, b_enc, k, b_dec, backend=backend)
    return codes.values, codes.indices, ragged_offsets(codes)


@encode_batch_topk_op.register_fake
def _(x, W_enc, b_enc, b_dec, k, backend):
    return _fake_ragged(x, x.shape[0] * k)


@custom_op("sae_kernels::encode_threshold", mutates_args=())
def encode_threshold_op(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    threshold: Tensor | None,
    capacity: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return values, indices, offsets and the number of dropped slots, 0 if it is not counted."""
    codes = encode_threshold(
        x, W_enc, b_enc, b_dec, threshold=threshold, capacity=capacity, backend=backend
    )
    offsets = ragged_offsets(codes)
    dropped = offsets.new_zeros(()) if codes.dropped is None else codes.dropped
    return codes.values, codes.indices, offsets, dropped


@encode_threshold_op.register_fake
def _(x, W_enc, b_enc, b_dec, threshold, capacity, backend):
    on_triton = backend == "triton" or (backend == "auto" and x.is_cuda)
    if capacity is None or not on_triton:
        size = torch.library.get_ctx().new_dynamic_size()
    else:
        size = capacity
    return *_fake_ragged(x, size), x.new_empty((), dtype=torch.int64)


def ragged_offsets(codes: Codes) -> Tensor:
    """Return the offsets of codes that are known to be ragged."""
    assert codes.offsets is not None
    return codes.offsets


def _fake_ragged(x: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    offsets = x.new_empty(x.shape[0] + 1, dtype=torch.int64)
    return x.new_empty(size), x.new_empty(size, dtype=torch.int64), offsets


@custom_op("sae_kernels::encode_backward", mutates_args=())
def encode_backward_op(
    grad: Tensor,
    x: Tensor,
    W_enc: Tensor,
    b_dec: Tensor | None,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    backend: str,
    needs: list[bool],
) -> list[Tensor]:
    """Return the needed gradients for any encoder above: a value is its pre-activation or 0."""
    g = torch.where(values > 0, grad, 0).flatten()
    centred = x if b_dec is None else x - b_dec
    pairs, sums = Pairs(indices, offsets, W_enc.shape[1]), pair_sums(resolve(backend, W_enc))
    return select_needed(encoder_grad(g, centred, W_enc, pairs, sums, None, needs), needs)


@encode_backward_op.register_fake
def _(grad, x, W_enc, b_dec, values, indices, offsets, backend, needs):
    d_in, d_sae = W_enc.shape
    d_W = W_enc.new_empty(d_sae, d_in).t()
    return select_needed((torch.empty_like(x), d_W, x.new_empty(d_sae), x.new_empty(d_in)), needs)


def _saved(inputs, output):
    x, W_enc, _, b_dec = inputs[:4]
    values, indices, offsets = (*output, None)[:3]
    return x, W_enc, b_dec, values, indices, offsets


for op in (encode_topk_op, encode_batch_topk_op, encode_threshold_op):
    register_backward(op, encode_backward_op, 4, _saved, differentiable_output=0)
