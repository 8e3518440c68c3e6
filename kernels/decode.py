"""x_hat[b] = b_dec + sum over the slots of row b of value * W_dec[index].

values [batch, k] or ragged [nnz], W_dec [d_sae, d_in], b_dec [d_in], all of one dtype; 16-bit
values are summed in fp32. Backward, with g = dL/dx_hat [batch, d_in]:
    dvalues = <g[token], W_dec[index]>,
    dW_dec[j] = sum over the tokens of latent j of value * g[token],
    db_dec = sum over the batch of g.
Saved for backward: values and W_dec; the pairs are shared with the encoder that computed them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from sae_kernels import reference
from sae_kernels.backend import PairSums, pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.custom_op import empty_like_needed, register_backward, select_needed
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import PairPart, RowGrads, row_grads_of


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        values: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        pairs: Pairs,
        sums: PairSums,
        row_grads: RowGrads | None,
    ) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pairs, ctx.sums, ctx.row_grads = pairs, sums, row_grads
        return sums.sum_latents(pairs, values.flatten(), W_dec).add_(b_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        values, W_dec = ctx.saved_tensors
        need_values, need_W, need_b = ctx.needs_input_grad[:3]
        pairs, sums = ctx.pairs, ctx.sums
        d_values = sums.dot_rows(pairs, grad, W_dec).view_as(values) if need_values else None
        d_W = None
        if need_W and ctx.row_grads is not None:
            ctx.row_grads.pair_parts.append(PairPart(pairs, values.flatten(), grad))
        elif need_W:
            d_W = sums.sum_tokens(pairs, values.flatten(), grad)
        d_b = grad.sum(0) if need_b else None
        return d_values, d_W, d_b, None, None, None


def check_d_sae(codes: Codes, W_dec: Tensor) -> None:
    """Raise ValueError if W_dec does not have one row for each latent of the codes."""
    if W_dec.shape[0] != codes.d_sae:
        raise ValueError(f"W_dec has {W_dec.shape[0]} rows but the codes have d_sae={codes.d_sae}")


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor, *, backend: str = "auto") -> Tensor:
    """Return the reconstruction of a batch from its codes.

    Args:
        codes: The codes of the batch.
        W_dec: Decoder weights, shape [d_sae, d_in], contiguous.
        b_dec: Decoder bias, shape [d_in].
        backend: "auto" (triton for CUDA tensors, otherwise torch), "torch", "triton" or
            "reference".

    Returns:
        The reconstruction [batch, d_in], differentiable once in codes.values, W_dec and b_dec.

    Raises:
        ValueError: The backend is unknown, or W_dec does not fit the codes.
    """
    check_d_sae(codes, W_dec)
    if torch.compiler.is_compiling() and backend != "reference":
        return decode_op(codes.values, W_dec, b_dec, codes.indices, codes.offsets, backend)
    backend = resolve(backend, W_dec)
    if backend == "reference":
        return reference.decode(codes, W_dec, b_dec)
    sums = pair_sums(backend)
    return _Decode.apply(codes.values, W_dec, b_dec, codes.by_latent(), sums, row_grads_of(W_dec))


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


register_backward(decode_op, decode_backward_op, 3, lambda inputs, _: [*inputs[:2], *inputs[3:5]])
