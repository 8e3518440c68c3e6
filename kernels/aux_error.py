"""How far a listed few latents rebuild a residual: sum |r - a|^2, with
    a = relu(top-k over the listed latents of (x - b_dec) @ W_enc + b_enc) @ W_dec.

x [batch, d_in], residual r [batch, d_out], latents int64 [n], ascending, without repeats; sums over
the batch in fp32 (float64 for float64). Gather kernels would read k rows per token; as long as n
stays below some 184 k, dense products over the n columns cost less, and n is bounded by the caller.

The gradient is made in the forward pass, a chunk of rows at a time, up to the factor that only the
backward pass knows: [batch, n] never exists, and nothing is computed twice. With e = r - a:
    dW_dec[latents] = -2 acts^T e,  d_acts = -2 e W_dec[latents]^T where acts > 0,
    dW_enc[:, latents] = (x - b_dec)^T d_acts,  db_enc[latents] = the sums of d_acts,
    db_dec = -W_enc db_enc. x and the residual are constants. Saved: those rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import resolve
from sae_kernels.cpu.pre_acts import less_matmul, matmul, product
from sae_kernels.deterministic_sum import deterministic_sum
from sae_kernels.row_grads import RowGrads, RowPart, deferred

# 1 MB of fp32 on CPU for each of the ten or so [rows, n] of a chunk: as fast as 4 MB, and 30 MB
# less. A GPU wants larger products.
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
CHUNK_MIN_ROWS = 160


def _keep_largest_(acts: Tensor, k: int) -> Tensor:
    """Everything but the k largest of each row becomes zero, in place."""
    if k >= acts.shape[1]:
        return acts
    kept = acts.topk(k, dim=1, sorted=False)
    return acts.zero_().scatter_(1, kept.indices, kept.values)


def _spread(latents: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    return rows.new_zeros(like.shape).index_copy_(0, latents, rows)


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
        sinks: tuple[RowGrads | None, RowGrads | None],
    ) -> Tensor:
        encoder, decoder = W_enc.t().index_select(0, latents), W_dec.index_select(0, latents)
        bias = b_enc[latents]
        wide = torch.promote_types(x.dtype, torch.float32)
        d_encoder, d_decoder, d_bias = (
            torch.zeros(t.shape, dtype=wide, device=t.device) for t in (encoder, decoder, bias)
        )
        total = torch.zeros((), dtype=wide, device=x.device)
        ctx.wanted = any(ctx.needs_input_grad[:4])
        rows = max(CHUNK_ELEMENTS[x.device.type] // max(len(latents), 1), CHUNK_MIN_ROWS)
        for start in range(0, len(x), rows):
            centred = x[start : start + rows]
            centred = centred if b_dec is None else centred - b_dec
            acts = product(centred, encoder, bias).relu_()
            acts = _keep_largest_(acts if mask is None else acts.mul_(mask), k)
            error = less_matmul(residual[start : start + rows], acts, decoder)
            total += deterministic_sum(error.to(wide).square())
            if ctx.wanted:
                d_acts = matmul(error, decoder.t()).mul_(acts > 0)
                d_decoder += matmul(acts.t(), error)
                d_encoder += matmul(d_acts.t(), centred)
                d_bias += d_acts.sum(0)
        ctx.save_for_backward(W_enc, b_enc, W_dec, latents, d_encoder, d_decoder, d_bias)
        ctx.sinks = sinks
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        W_enc, b_enc, W_dec, latents, d_encoder, d_decoder, d_bias = ctx.saved_tensors
        need_enc, need_bias, need_dec, need_b_dec = ctx.needs_input_grad[:4]
        enc_sink, dec_sink = ctx.sinks
        factor = -2 * grad
        d_W_enc = d_b_enc = d_W_dec = d_b_dec = None
        if need_enc:
            rows = (d_encoder * factor).to(W_enc.dtype)
            if enc_sink is not None:
                enc_sink.row_parts.append(RowPart(latents, rows))
            else:
                d_W_enc = _spread(latents, rows, W_enc.t()).t()
        if need_dec:
            rows = (d_decoder * factor).to(W_dec.dtype)
            if dec_sink is not None:
                dec_sink.row_parts.append(RowPart(latents, rows))
            else:
                d_W_dec = _spread(latents, rows, W_dec)
        d_bias = d_bias * factor
        if need_bias:
            d_b_enc = _spread(latents, d_bias.to(b_enc.dtype), b_enc)
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
    """The squared error left when `latents` rebuild `residual`: 0-d, at least fp32; what AuxK
    minimises (Gao et al. 2024, appendix A.2).

    x [batch, d_in] and residual [batch, d_out] are constants; W_enc [d_in, d_sae], b_enc [d_sae],
    W_dec [d_sae, d_out], b_dec [d_in] get gradients, differentiable once. latents int64 [n],
    ascending, without repeats; k: how many of them may fire on one token; mask bool [n]: which of
    them may fire at all. backend: as in `decode`; torch and triton are the same here, for every
    product is the vendor's. Raises ValueError for k < 1 and an unknown backend.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    x, residual = x.detach(), residual.detach()
    if resolve(backend, W_enc) == "reference":
        return reference.aux_error(x, residual, W_enc, b_enc, W_dec, latents, k, b_dec, mask)
    sinks = deferred(W_enc), deferred(W_dec)
    with torch.autocast(x.device.type, enabled=False):
        return _AuxError.apply(W_enc, b_enc, W_dec, b_dec, x, residual, latents, mask, k, sinks)
