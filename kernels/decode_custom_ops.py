"""Custom ops for the decoders under torch.compile: `torch.ops.sae_kernels.decode*`.

See `custom_op`. Gradients go to values, W_dec, b_dec and the target, if there is one.
"""

from __future__ import annotations

from torch import Tensor
from torch.library import custom_op

from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.custom_op import (
    accumulation_dtype,
    empty_like_needed,
    register_backward,
    select_needed,
)
from sae_kernels.decode import decode
from sae_kernels.decode_error import decode_error, error_grad
from sae_kernels.decode_prefixes import decode_prefixes, pairs_by_level, prefixes_grad
from sae_kernels.pairs import Pairs


@custom_op("sae_kernels::decode", mutates_args=())
def decode_op(
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    backend: str,
) -> Tensor:
    return decode(Codes(values, indices, len(W_dec), offsets), W_dec, b_dec, backend=backend)


@decode_op.register_fake
def _(values, W_dec, b_dec, indices, offsets, backend):
    # len() would turn a symbolic size into a number.
    batch = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    return W_dec.new_empty(batch, W_dec.shape[1])


@custom_op("sae_kernels::decode_backward", mutates_args=())
def decode_backward_op(
    grad: Tensor,
    values: Tensor,
    W_dec: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    backend: str,
    needs: list[bool],
) -> list[Tensor]:
    pairs, sums = Pairs(indices, offsets, len(W_dec)), pair_sums(resolve(backend, W_dec))
    gradients = (
        lambda: sums.dot_rows(pairs, grad, W_dec).view_as(values),
        lambda: sums.sum_tokens(pairs, values.flatten(), grad),
        lambda: grad.sum(0),
    )
    return [compute() for compute in select_needed(gradients, needs)]


@decode_backward_op.register_fake
def _(grad, values, W_dec, indices, offsets, backend, needs):
    return empty_like_needed((values, W_dec, grad[0]), needs)


@custom_op("sae_kernels::decode_error", mutates_args=())
def decode_error_op(
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    codes = Codes(values, indices, len(W_dec), offsets)
    return decode_error(codes, W_dec, b_dec, target, backend=backend)


@decode_error_op.register_fake
def _(values, W_dec, b_dec, target, indices, offsets, backend):
    return target.new_empty(target.shape), target.new_empty((), dtype=accumulation_dtype(target))


@custom_op("sae_kernels::decode_error_backward", mutates_args=())
def decode_error_backward_op(
    grad: Tensor,
    values: Tensor,
    W_dec: Tensor,
    residual: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    backend: str,
    needs: list[bool],
) -> list[Tensor]:
    pairs, sums = Pairs(indices, offsets, len(W_dec)), pair_sums(resolve(backend, W_dec))
    return select_needed(error_grad(grad, values, W_dec, residual, pairs, sums, None, needs), needs)


@decode_error_backward_op.register_fake
def _(grad, values, W_dec, residual, indices, offsets, backend, needs):
    return empty_like_needed((values, W_dec, W_dec[0], residual), needs)


@custom_op("sae_kernels::decode_prefixes", mutates_args=())
def decode_prefixes_op(
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    levels: Tensor,
    n_levels: int,
    backend: str,
) -> Tensor:
    codes = Codes(values, indices, len(W_dec), offsets)
    return decode_prefixes(codes, levels, n_levels, W_dec, b_dec, target, backend=backend)


@decode_prefixes_op.register_fake
def _(values, W_dec, b_dec, target, indices, offsets, levels, n_levels, backend):
    return target.new_empty(n_levels, dtype=accumulation_dtype(target))


@custom_op("sae_kernels::decode_prefixes_backward", mutates_args=())
def decode_prefixes_backward_op(
    grad: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    levels: Tensor,
    backend: str,
    needs: list[bool],
) -> list[Tensor]:
    codes, n_levels = Codes(values, indices, len(W_dec), offsets), len(grad)
    context = *pairs_by_level(codes, levels, n_levels), n_levels, resolve(backend, W_dec)
    return select_needed(prefixes_grad(grad, values, W_dec, b_dec, target, *context, needs), needs)


@decode_prefixes_backward_op.register_fake
def _(grad, values, W_dec, b_dec, target, indices, offsets, levels, backend, needs):
    return empty_like_needed((values, W_dec, b_dec, target), needs)


register_backward(decode_op, decode_backward_op, 3, lambda inputs, _: [*inputs[:2], *inputs[3:5]])
register_backward(
    decode_error_op,
    decode_error_backward_op,
    4,
    lambda inputs, output: [*inputs[:2], output[0], *inputs[4:6]],
    differentiable_output=1,
)
register_backward(decode_prefixes_op, decode_prefixes_backward_op, 4, lambda inputs, _: inputs[:7])
