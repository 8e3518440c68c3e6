"""The squared error left after listed latents rebuild a residual: sum |r - a|^2, with
    a = relu(top-k over the listed latents of (x - b_dec) @ W_enc + b_enc) @ W_dec.

x [batch, d_in], residual r [batch, d_out], latents int64 [n], ascending, without repeats; sums over
the batch are in fp32 (float64 for float64). Gather kernels would read k rows per token. While n is
below about 184 k, dense products over the n columns cost less, and the caller bounds n.

The gradient is computed in the forward pass, a chunk of rows at a time, up to the factor that only
the backward pass knows: [batch, n] never exists, and nothing is computed twice. With e = r - a:
    dW_dec[latents] = -2 acts^T e,
    d_acts = -2 e W_dec[latents]^T where acts > 0,
    dW_enc[:, latents] = (x - b_dec)^T d_acts,
    db_enc[latents] = the sums of d_acts over the batch,
    db_dec = -W_enc db_enc.
x and the residual are constants. Saved for backward: those rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import resolve
from sae_kernels.deterministic_sum import deterministic_sum
from sae_kernels.listed_latents import chunk_rows, scatter_rows
from sae_kernels.matmul import linear, matmul, subtract_matmul
from sae_kernels.row_grads import RowGrads, RowPart, row_grads_of


def _keep_largest_(acts: Tensor, k: int) -> Tensor:
    """Set all but the k largest of each row to zero, in place, and return `acts`."""
    if k >= acts.shape[1]:
        return acts
    largest = acts.topk(k, dim=1, sorted=False)
    return acts.zero_().scatter_(1, largest.indices, largest.values)


class _AuxError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor | None,
        x: Tensor,
        residual: Tensor,
        latents: Tensor,
        mask: Tensor | None,
        k: int,
        row_grads: tuple[RowGrads | None, RowGrads | None],
    ) -> Tensor:
        encoder, decoder = W_enc.t().index_select(0, latents), W_dec.index_select(0, latents)
        bias = b_enc[latents]
        acc_dtype = torch.promote_types(x.dtype, torch.float32)
        d_encoder, d_decoder, d_bias = (
            torch.zeros(t.shape, dtype=acc_dtype, device=t.device) for t in (encoder, decoder, bias)
        )
        total = torch.zeros((), dtype=acc_dtype, device=x.device)
        needs_grad = any(ctx.needs_input_grad[:4])
        rows = chunk_rows(x.device.type, len(latents))
        for start in range(0, len(x), rows):
            centred = x[start : start + rows]
            centred = centred if b_dec is None else centred - b_dec
            acts = linear(centred, encoder, bias).relu_()
            acts = _keep_largest_(acts if mask is None else acts.mul_(mask), k)
            error = subtract_matmul(residual[start : start + rows], acts, decoder)
            total += deterministic_sum(error.to(acc_dtype).square())
            if needs_grad:
                d_acts = matmul(error, decoder.t()).mul_(acts > 0)
                d_decoder += matmul(acts.t(), error)
                d_encoder += matmul(d_acts.t(), centred)
                d_bias += d_acts.sum(0)
        ctx.save_for_backward(W_enc, b_enc, W_dec, latents, d_encoder, d_decoder, d_bias)
        ctx.row_grads = row_grads
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        W_enc, b_enc, W_dec, latents, d_encoder, d_decoder, d_bias = ctx.saved_tensors
        need_enc, need_bias, need_dec, need_b_dec = ctx.needs_input_grad[:4]
        enc_row_grads, dec_row_grads = ctx.row_grads
        factor = -2 * grad
        d_W_enc = d_b_enc = d_W_dec = d_b_dec = None
        if need_enc:
            rows = (d_encoder * factor).to(W_enc.dtype)
            if enc_row_grads is not None:
                enc_row_grads.row_parts.append(RowPart(latents, rows))
            else:
                d_W_enc = scatter_rows(latents, rows, W_enc.t()).t()
        if need_dec:
            rows = (d_decoder * factor).to(W_dec.dtype)
            if dec_row_grads is not None:
                dec_row_grads.row_parts.append(RowPart(latents, rows))
            else:
                d_W_dec = scatter_rows(latents, rows, W_dec)
        d_bias = d_bias * factor
        if need_bias:
            d_b_enc = scatter_rows(latents, d_bias.to(b_enc.dtype), b_enc)
        if need_b_dec:
            encoder = W_enc.t().index_select(0, latents)
            d_b_dec = -(d_bias @ encoder.to(d_bias.dtype)).to(W_enc.dtype)
        return d_W_enc, d_b_enc, d_W_dec, d_b_dec, *(None,) * 6


def aux_error(
    x: Tensor,
    residual: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    latents: Tensor,
    k: int,
    *,
    b_dec: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the squared error that is left after `latents` rebuild `residual`.

    AuxK minimises it (Gao et al. 2024, appendix A.2).

    Args:
        x: Activations, shape [batch, d_in], a constant.
        residual: What is rebuilt, shape [batch, d_out], a constant.
        W_enc, b_enc, W_dec: Weights, shapes [d_in, d_sae], [d_sae] and [d_sae, d_out].
        latents: The listed latents, int64 [n], ascending, without repeats.
        k: How many of them may fire on one token.
        b_dec: Subtracted from x, shape [d_in], or None.
        mask: Which of the listed latents may fire at all, bool [n]; None for all.
        backend: As in `decode`. "torch" and "triton" are the same here: every product is the
            vendor's.

    Returns:
        0-d, fp32 or wider, differentiable once in W_enc, b_enc, W_dec and b_dec.

    Raises:
        ValueError: k is below 1, or the backend is unknown.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    x, residual = x.detach(), residual.detach()
    if resolve(backend, W_enc) == "reference":
        return reference.aux_error(x, residual, W_enc, b_enc, W_dec, latents, k, b_dec, mask)
    row_grads = row_grads_of(W_enc), row_grads_of(W_dec)
    with torch.autocast(x.device.type, enabled=False):
        return _AuxError.apply(W_enc, b_enc, W_dec, b_dec, x, residual, latents, mask, k, row_grads)
