"""result[i] = the sum over the batch of relu(theta[i] - pre[:, latents[i]]): how far listed latents
stay below their thresholds; pre = (x - b_dec) @ W_enc + b_enc.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major, b_enc [d_sae], b_dec [d_in], latents int64
[n], theta [n]. Compared and summed in fp32 (float64 for float64).

The gradient is made in the forward pass, a chunk of rows at a time, up to the factors s =
dL/dresult that only the backward pass knows: [batch, n] never exists, and nothing is computed
twice. With K [batch, n] = 1 where pre < theta and c its column sums:
    dtheta = s * c,  db_enc[latents] = -s * c,  dW_enc[:, latents] = -s * ((x - b_dec)^T K),
    db_dec = W_enc[:, latents] @ (s * c). x is a constant. Saved: (x - b_dec)^T K and c.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.aux_error import CHUNK_ELEMENTS, CHUNK_MIN_ROWS
from sae_kernels.backend import resolve
from sae_kernels.cpu.pre_acts import matmul, product
from sae_kernels.row_grads import RowGrads, RowPart, deferred


class _Shortfall(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor | None,
        theta: Tensor,
        x: Tensor,
        latents: Tensor,
        sink: RowGrads | None,
    ) -> Tensor:
        encoder, bias = W_enc.t().index_select(0, latents), b_enc[latents]
        wide = torch.promote_types(x.dtype, torch.float32)
        at, n = theta.to(wide), len(latents)
        total, counts = at.new_zeros(n), at.new_zeros(n)
        sums = at.new_zeros(encoder.shape)
        rows = max(CHUNK_ELEMENTS[x.device.type] // max(n, 1), CHUNK_MIN_ROWS)
        for centred in x.split(rows):
            centred = centred if b_dec is None else centred - b_dec
            short = torch.sub(at, product(centred, encoder, bias)).relu_()
            total += short.sum(0)
            below = (short > 0).to(centred.dtype)
            counts += below.sum(0, dtype=wide)
            sums += matmul(below.t(), centred)
        ctx.save_for_backward(W_enc, b_enc, latents, sums, counts)
        ctx.sink, ctx.dtype = sink, theta.dtype
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
            if ctx.sink is not None:
                ctx.sink.row_parts.append(RowPart(latents, rows))
            else:
                d_W = rows.new_zeros(W_enc.t().shape).index_copy_(0, latents, rows).t()
        if need_b_enc:
            d_b_enc = torch.zeros_like(b_enc).index_copy_(0, latents, -d_theta.to(b_enc.dtype))
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
    """[n], at least fp32: how far the pre-activations of `latents` lie below theta, summed over the
    batch; what the pre-activation loss of JumpReLU sums (Anthropic, January 2025).

    x [batch, d_in] is a constant; W_enc [d_in, d_sae], b_enc [d_sae], b_dec [d_in] and theta [n]
    get gradients, differentiable once; a W_enc with `row_grads` gets its in parts. latents int64
    [n], ascending, without repeats. backend: as in `decode`; torch and triton are the same here,
    for every product is the vendor's. Raises ValueError for a theta of another shape and an unknown
    backend.
    """
    if theta.shape != latents.shape:
        raise ValueError(f"theta has shape {tuple(theta.shape)}; latents {tuple(latents.shape)}")
    x = x.detach()
    if resolve(backend, W_enc) == "reference":
        return reference.pre_act_loss(x, W_enc, b_enc, theta, latents, b_dec)
    with torch.autocast(x.device.type, enabled=False):
        return _Shortfall.apply(W_enc, b_enc, b_dec, theta, x, latents, deferred(W_enc))
