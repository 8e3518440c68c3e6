"""residual = target - x_hat, and the sum of its squares, in one pass; x_hat as in `decode`.

values [batch, k] or ragged [nnz], W_dec [d_sae, d_in], b_dec [d_in], target [batch, d_in], all of
one dtype. The squares are summed in fp32 along a row and in float64 over the rows on CPU (fp32 in
Triton). The sum is fp32 for 16-bit and fp32 inputs, and float64 for float64.

Backward, with s = -2 * dL/dsquared_error:
    dvalues = s * <residual[token], W_dec[index]>,
    dW_dec[j] = sum over the tokens of latent j of (s * value) * residual[token],
    db_dec = s * sum over the batch of residual,
    dtarget = -s * residual.
s scales the values, not the residual, so that no second [batch, d_in] exists unless the target
needs a gradient. Saved for backward: values, W_dec and the residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from sae_kernels import reference
from sae_kernels.backend import PairSums, pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.custom_op import (
    accumulation_dtype,
    empty_like_needed,
    register_backward,
    select_needed,
)
from sae_kernels.decode import check_d_sae
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import PairPart, RowGrads, row_grads_of


class _DecodeError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        values: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        target: Tensor,
        pairs: Pairs,
        backend: str,
        row_grads: RowGrads | None,
    ) -> tuple[Tensor, Tensor]:
        if backend == "triton":
            from sae_kernels.gpu.decode_error import forward
        else:
            from sae_kernels.cpu.decode_error import forward
        residual, squared_error = forward(pairs, values.flatten(), W_dec, b_dec, target)
        ctx.mark_non_differentiable(residual)
        ctx.save_for_backward(values, W_dec, residual)
        ctx.context = pairs, pair_sums(backend), row_grads
        return residual, squared_error

    @staticmethod
    @once_differentiable
    def backward(ctx, _, grad: Tensor):
        needs = ctx.needs_input_grad[:4]
        grads = error_grad(grad, *ctx.saved_tensors, *ctx.context, needs=needs)
        return *grads, None, None, None


def error_grad(
    grad: Tensor,
    values: Tensor,
    W_dec: Tensor,
    residual: Tensor,
    pairs: Pairs,
    sums: PairSums,
    row_grads: RowGrads | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of values, W_dec, b_dec and target, each None if it is not needed.

    Args:
        grad: dL/dsquared_error, 0-d.
        values, W_dec, residual: The saved tensors.
        pairs: The pairs of the codes.
        sums: The sums over pairs of the backend.
        row_grads: Receives the gradient of W_dec in parts, and None is returned for it; None to
            return it dense.
        needs: Which of the four gradients are needed.
    """
    need_values, need_W, need_b, need_target = needs
    scale = -2 * grad
    d_values = d_W = d_b = d_target = None
    if need_values:
        d_values = _scaled(sums.dot_rows(pairs, residual, W_dec), scale).view_as(values)
    if need_W:
        weights = _scaled(values.flatten(), scale)
        if row_grads is not None:
            row_grads.pair_parts.append(PairPart(pairs, weights, residual))
        else:
            d_W = sums.sum_tokens(pairs, weights, residual)
    if need_b:
        d_b = _scaled(residual.sum(0), scale)
    if need_target:
        d_target = _scaled(residual, -scale)
    return d_values, d_W, d_b, d_target


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """Return tensor * scale in the tensor's dtype, without rounding the scale to it first."""
    return (tensor * scale.reshape(1)).to(tensor.dtype)


def decode_error(
    codes: Codes, W_dec: Tensor, b_dec: Tensor, target: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the target minus the reconstruction, and the sum of its squares.

    Args:
        codes: The codes of the batch.
        W_dec: Decoder weights, shape [d_sae, d_in], contiguous. If it has `row_grads`, its gradient
            goes there in parts.
        b_dec: Decoder bias, shape [d_in].
        target: What is reconstructed, shape [batch, d_in].
        backend: As in `decode`.

    Returns:
        residual: [batch, d_in], a constant: no gradient flows through it, and it must not be
            changed in place before the backward pass.
        squared_error: 0-d, fp32 or float64, differentiable once in codes.values, W_dec, b_dec and
            target.

    Raises:
        ValueError: The backend is unknown, or W_dec or the target does not fit the codes.
    """
    check_d_sae(codes, W_dec)
    check_target(codes, W_dec, target)
    if torch.compiler.is_compiling() and backend != "reference":
        return decode_error_op(
            codes.values, W_dec, b_dec, target, codes.indices, codes.offsets, backend
        )
    backend = resolve(backend, W_dec)
    if backend == "reference":
        return reference.decode_error(codes, W_dec, b_dec, target)
    return _DecodeError.apply(
        codes.values, W_dec, b_dec, target, codes.by_latent(), backend, row_grads_of(W_dec)
    )


def check_target(codes: Codes, W_dec: Tensor, target: Tensor) -> None:
    """Raise ValueError if the target does not have the shape of the reconstruction."""
    expected = (codes.batch, W_dec.shape[1])
    if target.shape != expected:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; the codes and W_dec make {expected}"
        )


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


register_backward(
    decode_error_op,
    decode_error_backward_op,
    4,
    lambda inputs, output: [*inputs[:2], output[0], *inputs[4:6]],
    differentiable_output=1,
)
