"""The backward every encoder shares.

Every rule makes slots whose value depends on one pre-activation, pre = c @ W_enc[:, j] + b_enc[j]
with c = x - b_dec. Given g [nnz], the gradient by that pre-activation of each slot:
    dW_enc[:, j] = sum over the tokens of latent j of g * c[token],  db_enc[j] = the sum of those g,
    db_dec = -W_enc @ db_enc (tokens are summed first),
    dx[b] = sum over the slots of row b of g * W_enc[:, index].
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels.codes import Codes
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import PairPart, RowGrads


def encoder_grad(
    g: Tensor,
    centred: Tensor,
    W_enc: Tensor,
    pairs: Pairs,
    sums: ModuleType,
    sink: RowGrads | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, W_enc, b_enc and b_dec, each None where not needed.

    g [nnz], centred [batch, d_in]; needs: which of the four are wanted. With a sink W_enc's goes
    there in parts, and None is returned for it.
    """
    need_x, need_W, need_b_enc, need_b_dec = needs
    d_x = d_W = d_b_enc = d_b_dec = None
    if need_x:
        d_x = sums.sum_latents(pairs, g, W_enc.t())
    if need_W and sink is not None:
        sink.pair_parts.append(PairPart(pairs, g, centred))
    elif need_W:
        d_W = sums.sum_tokens(pairs, g, centred).t()
    if need_b_enc or need_b_dec:
        d_b = sums.sum_weights(pairs, g)
        d_b_enc = d_b.to(W_enc.dtype)
        if need_b_dec:
            wide = torch.promote_types(W_enc.dtype, torch.float32)
            with torch.autocast(g.device.type, enabled=False):
                d_b_dec = -(W_enc.to(wide) @ d_b.to(wide)).to(W_enc.dtype)
    return d_x, d_W, d_b_enc, d_b_dec


class Selected(torch.autograd.Function):
    """Attaches the graph to codes that were already selected: the selection itself is constant.

    A value is its pre-activation where it is not 0 (nor NaN), else constant. Saved: x - b_dec,
    W_enc, values and the pairs.
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
        sums: ModuleType,
        sink: RowGrads | None,
    ) -> Tensor:
        ctx.save_for_backward(centred, W_enc, codes.values)
        ctx.pairs, ctx.sums, ctx.sink = codes.by_latent(), sums, sink
        return codes.values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        centred, W_enc, values = ctx.saved_tensors
        g = torch.where(values.abs() > 0, grad, 0).flatten()
        needs = ctx.needs_input_grad[:4]
        grads = encoder_grad(g, centred, W_enc, ctx.pairs, ctx.sums, ctx.sink, needs)
        return *grads, None, None, None, None
