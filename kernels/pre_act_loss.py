"""result[i] = the sum over the batch of relu(theta[i] - pre[:, latents[i]]), for listed latents,
with pre = (x - b_dec) @ W_enc + b_enc: how far they stay below their thresholds.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major, b_enc [d_sae], b_dec [d_in], latents int64
[n], theta [n]. Compared and summed in fp32 (float64 for float64).

The gradient is computed in the forward pass, a chunk of rows at a time, up to the factors s =
dL/dresult that only the backward pass knows: [batch, n] never exists, and nothing is computed
twice. With K [batch, n] = 1 where pre < theta, and c its column sums:
    dtheta = s * c,
    db_enc[latents] = -s * c,
    dW_enc[:, latents] = -s * ((x - b_dec)^T K),
    db_dec = W_enc[:, latents] @ (s * c).
x is a constant. Saved for backward: (x - b_dec)^T K and c.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import resolve
from sae_kernels.listed_latents import chunk_rows, scatter_rows
from sae_kernels.matmul import linear, matmul
from sae_kernels.row_grads import RowGrads, RowPart, row_grads_of


class _PreActLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor | None,
        theta: Tensor,
        x: Tensor,
        latents: Tensor,
        row_grads: RowGrads | None,
    ) -> Tensor:
        encoder, bias = W_enc.t().index_select(0, latents), b_enc[latents]
        acc_dtype = torch.promote_types(x.dtype, torch.float32)
        thresholds, n = theta.to(acc_dtype), len(latents)
        total, counts = thresholds.new_zeros(n), thresholds.new_zeros(n)
        sums = thresholds.new_zeros(encoder.shape)
        for centred in x.split(chunk_rows(x.device.type, n)):
            centred = centred if b_dec is None else centred - b_dec
            shortfall = torch.sub(thresholds, linear(centred, encoder, bias)).relu_()
            total += shortfall.sum(0)
            below = (shortfall > 0).to(centred.dtype)
            counts += below.sum(0, dtype=acc_dtype)
            sums += matmul(below.t(), centred)
        ctx.save_for_backward(W_enc, b_enc, latents, sums, counts)
        ctx.row_grads, ctx.dtype = row_grads, theta.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        W_enc, b_enc, latents, sums, counts = ctx.saved_tensors
        need_W, need_b_enc, need_b_dec, need_theta = ctx.needs_input_grad[:4]
        d_theta = grad * counts
        d_W = d_b_enc = d_b_dec = None
        if need_W:
            rows = (sums * -grad[:, None]).to(W_enc.dtype)
            if ctx.row_grads is not None:
                ctx.row_grads.row_parts.append(RowPart(latents, rows))
            else:
                d_W = scatter_rows(latents, rows, W_enc.t()).t()
        if need_b_enc:
            d_b_enc = scatter_rows(latents, -d_theta.to(b_enc.dtype), b_enc)
        if need_b_dec:
            encoder = W_enc.t().index_select(0, latents)
            d_b_dec = (d_theta @ encoder.to(d_theta.dtype)).to(W_enc.dtype)
        d_theta = d_theta.to(ctx.dtype) if need_theta else None
        return d_W, d_b_enc, d_b_dec, d_theta, None, None, None


def pre_act_loss(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor,
    latents: Tensor,
    *,
    b_dec: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return how far the pre-activations of `latents` lie below theta, summed over the batch.

    The pre-activation loss of JumpReLU sums it (Anthropic, January 2025).

    Args:
        x: Activations, shape [batch, d_in], a constant.
        W_enc: Encoder weights, shape [d_in, d_sae]. If it has `row_grads`, its gradient goes there
            in parts.
        b_enc: Encoder bias, shape [d_sae].
        theta: The thresholds of the listed latents, shape [n].
        latents: The listed latents, int64 [n], ascending, without repeats.
        b_dec: Subtracted from x, shape [d_in], or None.
        backend: As in `decode`. "torch" and "triton" are the same here: every product is the
            vendor's.

    Returns:
        [n], fp32 or wider, differentiable once in W_enc, b_enc, b_dec and theta.

    Raises:
        ValueError: theta does not have one entry per listed latent, or the backend is unknown.
    """
    if theta.shape != latents.shape:
        raise ValueError(f"theta has shape {tuple(theta.shape)}; latents {tuple(latents.shape)}")
    x = x.detach()
    if resolve(backend, W_enc) == "reference":
        return reference.pre_act_loss(x, W_enc, b_enc, theta, latents, b_dec)
    with torch.autocast(x.device.type, enabled=False):
        return _PreActLoss.apply(W_enc, b_enc, b_dec, theta, x, latents, row_grads_of(W_enc))
