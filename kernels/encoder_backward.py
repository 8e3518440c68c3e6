"""The backward pass that every encoder shares.

Each slot's value depends on one pre-activation, pre = c @ W_enc[:, j] + b_enc[j] with c = x -
b_dec. Given g [nnz], the gradient of each slot's pre-activation:
    dW_enc[:, j] = sum over the tokens of latent j of g * c[token],
    db_enc[j] = sum over the tokens of latent j of g,
    db_dec = -W_enc @ db_enc (tokens are summed first),
    dx[b] = sum over the slots of row b of g * W_enc[:, index].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import CustomOpDef, custom_op  # pyright: ignore[reportPrivateImportUsage]

from sae_kernels.backend import PairSums, pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.custom_op import register_backward, select_needed
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import PairPart, RowGrads


def encoder_grad(
    g: Tensor,
    centred: Tensor,
    W_enc: Tensor,
    pairs: Pairs,
    sums: PairSums,
    row_grads: RowGrads | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, W_enc, b_enc and b_dec, each None if it is not needed.

    Args:
        g: The gradient of each slot's pre-activation, shape [nnz].
        centred: x - b_dec, shape [batch, d_in].
        W_enc: Encoder weights, shape [d_in, d_sae].
        pairs: The pairs of the codes.
        sums: The sums over pairs of the backend.
        row_grads: Receives the gradient of W_enc in parts, and None is returned for it; None to
            return it dense.
        needs: Which of the four gradients are needed.
    """
    need_x, need_W, need_b_enc, need_b_dec = needs
    d_x = d_W = d_b_enc = d_b_dec = None
    if need_x:
        d_x = sums.sum_latents(pairs, g, W_enc.t())
    if need_W and row_grads is not None:
        row_grads.pair_parts.append(PairPart(pairs, g, centred))
    elif need_W:
        d_W = sums.sum_tokens(pairs, g, centred).t()
    if need_b_enc or need_b_dec:
        d_b = sums.sum_weights(pairs, g)
        d_b_enc = d_b.to(W_enc.dtype)
        if need_b_dec:
            acc_dtype = torch.promote_types(W_enc.dtype, torch.float32)
            with torch.autocast(g.device.type, enabled=False):
                # Vector times matrix: MKL splits the sum of matrix times vector between threads.
                d_b_dec = -(d_b.to(acc_dtype) @ W_enc.t().to(acc_dtype)).to(W_enc.dtype)
    return d_x, d_W, d_b_enc, d_b_dec


class SelectedPreActs(torch.autograd.Function):
    """Attach the graph to codes that were already selected; the selection itself is constant.

    A value is its pre-activation if it is neither 0 nor NaN, else constant. Saved for backward:
    x - b_dec, W_enc, values and the pairs.
    """

    @staticmethod
    def forward(
        ctx,
        x,
        W_enc,
        b_enc,
        b_dec,
        centred: Tensor,
        codes: Codes,
        sums: PairSums,
        row_grads: RowGrads | None,
    ) -> Tensor:
        ctx.save_for_backward(centred, W_enc, codes.values)
        ctx.pairs, ctx.sums, ctx.row_grads = codes.by_latent(), sums, row_grads
        return codes.values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        centred, W_enc, values = ctx.saved_tensors
        g = torch.where(values.abs() > 0, grad, 0).flatten()
        needs = ctx.needs_input_grad[:4]
        grads = encoder_grad(g, centred, W_enc, ctx.pairs, ctx.sums, ctx.row_grads, needs)
        return *grads, None, None, None, None


def ragged_offsets(codes: Codes) -> Tensor:
    """Return the offsets of codes that are known to be ragged."""
    assert codes.offsets is not None
    return codes.offsets


def fake_ragged(x: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialised values, indices and offsets of ragged codes, for a fake encoder."""
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
    """Return the needed gradients of an encoder: a value is its pre-activation or 0."""
    g = torch.where(values > 0, grad, 0).flatten()
    centred = x if b_dec is None else x - b_dec
    pairs, sums = Pairs(indices, offsets, W_enc.shape[1]), pair_sums(resolve(backend, W_enc))
    return select_needed(encoder_grad(g, centred, W_enc, pairs, sums, None, needs), needs)


@encode_backward_op.register_fake
def _(grad, x, W_enc, b_dec, values, indices, offsets, backend, needs):
    d_in, d_sae = W_enc.shape
    d_W = W_enc.new_empty(d_sae, d_in).t()
    return select_needed((torch.empty_like(x), d_W, x.new_empty(d_sae), x.new_empty(d_in)), needs)


def register_encoder_backward(op: CustomOpDef) -> None:
    """Make the custom op of an encoder differentiable in x, W_enc, b_enc and b_dec.

    Its first inputs are these four; its first outputs are values, indices and, for ragged codes,
    offsets. Values alone are differentiable.
    """

    def saved(inputs: tuple, output: Tensor | tuple) -> Sequence[Tensor | None]:
        x, W_enc, _, b_dec = inputs[:4]
        values, indices, offsets = (*output, None)[:3]
        return x, W_enc, b_dec, values, indices, offsets

    register_backward(op, encode_backward_op, 4, saved, differentiable_output=0)
