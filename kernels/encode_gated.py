"""acts = 1[pi_gate > 0] * relu(pi_mag), and relu(pi_gate) for its auxiliary loss: Gated SAEs.

    h = (x - b_dec) @ W_enc,  pi_gate = h + b_gate,  pi_mag = h * exp(r_mag) + b_mag.
x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_gate, b_mag,
r_mag [d_sae], b_dec [d_in], all of one dtype. One product. A slot is where pi_gate > 0; h exists
for a bounded chunk of rows only. On CPU bf16 is multiplied into fp32; Triton rounds h to the
inputs' dtype. What follows is fp32 (float64 for float64) and rounded last.

Backward, with g_gate and g_mag the gradients of the two values where these are positive, else 0:
    dh = g_gate + g_mag * exp(r_mag),  for x, W_enc and b_dec through `encoder_backward`,
    db_gate, db_mag, dr_mag = the sums over the tokens of a latent of g_gate, g_mag, and
    g_mag * exp(r_mag) * h.
The step has no gradient. Saved: x - b_dec, W_enc, r_mag, both values, h of each slot and the pairs.

Not finite: a NaN of h makes a slot and comes out as NaN, with gradient 0.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import compaction, pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encoder_backward import encoder_grad
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import RowGrads, deferred


class _EncodeGated(torch.autograd.Function):
    """Attaches the graph to codes that were already made. h [nnz]."""

    @staticmethod
    def forward(
        ctx,
        x,
        W_enc,
        b_gate,
        b_mag,
        r_mag,
        b_dec,
        centred: Tensor,
        codes: Codes,
        gates: Codes,
        h: Tensor,
        sums: ModuleType,
        sink: RowGrads | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(centred, W_enc, r_mag, codes.values, gates.values, h)
        ctx.pairs, ctx.sums, ctx.sink = codes.by_latent(), sums, sink
        return codes.values, gates.values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mag: Tensor, grad_gate: Tensor):
        centred, W_enc, r_mag, acts, gates, h = ctx.saved_tensors
        pairs, sums, dtype = ctx.pairs, ctx.sums, W_enc.dtype
        need_x, need_W, need_b_gate, need_b_mag, need_r_mag, need_b_dec = ctx.needs_input_grad[:6]
        g_gate = torch.where(gates > 0, grad_gate, 0)
        g_mag = torch.where(acts > 0, grad_mag, 0)
        scaled = g_mag * r_mag.to(h.dtype).exp()[pairs.indices]
        needs = (need_x, need_W, False, need_b_dec)
        dh = (g_gate + scaled).to(dtype)
        d_x, d_W, _, d_b_dec = encoder_grad(dh, centred, W_enc, pairs, sums, ctx.sink, needs)
        d_b_gate = sums.sum_weights(pairs, g_gate).to(dtype) if need_b_gate else None
        d_b_mag = sums.sum_weights(pairs, g_mag).to(dtype) if need_b_mag else None
        d_r_mag = None
        if need_r_mag:
            d_r_mag = sums.sum_weights(pairs, torch.where(acts > 0, scaled * h, 0)).to(dtype)
        return d_x, d_W, d_b_gate, d_b_mag, d_r_mag, d_b_dec, *[None] * 6


def encode_gated(
    x: Tensor,
    W_enc: Tensor,
    b_gate: Tensor,
    b_mag: Tensor,
    r_mag: Tensor,
    b_dec: Tensor | None = None,
    *,
    capacity: int | None = None,
    backend: str = "auto",
) -> tuple[Codes, Codes]:
    """Gated encoder (Rajamanoharan et al. 2024, arXiv 2404.16014): (codes, gates).

    x [batch, d_in], W_enc [d_in, d_sae] (fast when W_enc.t() is contiguous), b_gate, b_mag, r_mag
    [d_sae], b_dec [d_in] or None. codes: 1[pi_gate > 0] * relu(pi_mag), which the decoder takes.
    gates: relu(pi_gate) > 0, whose sum is the L1 penalty and which the auxiliary loss decodes with
    a decoder held constant. Both are ragged and have the same indices, offsets and pairs; a slot
    whose gate is open but whose magnitude is not positive is empty in codes. Values are
    differentiable once in every input. autocast has no effect.

    capacity, and what Triton waits for without it: as in `encode_threshold`; both codes have
    `dropped`. backend: as in `decode`. Raises ValueError for a negative capacity and an unknown
    backend.
    """
    d_sae = W_enc.shape[1]
    if capacity is not None and capacity < 0:
        raise ValueError(f"capacity={capacity} must not be negative")
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_gated(x, W_enc, b_gate, b_mag, r_mag, b_dec)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        centred = x if b_dec is None else x - b_dec
        compact = compaction(backend)
        # pi_gate > 0 as h > -b_gate, which is the same in floating point: so h itself is kept.
        W_rows, no_bias = W_enc.t().contiguous(), torch.zeros_like(b_gate)
        slots = compact.above_floor(centred, W_rows, no_bias, -b_gate.to(wide), capacity)
        h, at = slots.pre, slots.indices
        is_slot = h != -torch.inf  # which padding is
        magnitude = h * r_mag.to(wide).exp()[at] + b_mag.to(wide)[at]
        acts = torch.where(is_slot, magnitude, 0).relu().to(x.dtype)
        opened = torch.where(is_slot, h + b_gate.to(wide)[at], 0).relu().to(x.dtype)
    pairs = Pairs(slots.indices, slots.offsets, d_sae)
    codes = Codes(acts, slots.indices, d_sae, slots.offsets, slots.dropped, pairs)
    gates = Codes(opened, slots.indices, d_sae, slots.offsets, slots.dropped, pairs)
    codes.values, gates.values = _EncodeGated.apply(
        x,
        W_enc,
        b_gate,
        b_mag,
        r_mag,
        b_dec,
        centred,
        codes,
        gates,
        h,
        pair_sums(backend),
        deferred(W_enc),
    )
    return codes, gates
