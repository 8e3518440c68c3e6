"""acts = 1[pi_gate > 0] * relu(pi_mag), and relu(pi_gate) for its auxiliary loss: Gated SAEs.

    h = (x - b_dec) @ W_enc,  pi_gate = h + b_gate,  pi_mag = h * exp(r_mag) + b_mag.
x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_gate, b_mag,
r_mag [d_sae], b_dec [d_in], all of one dtype. There is one product. A slot is where pi_gate > 0; h
exists only for a bounded chunk of rows. On CPU 16-bit inputs are multiplied into fp32; Triton
rounds h to the inputs' dtype. The rest is fp32 (float64 for float64) and rounded last.

Backward, with g_gate and g_mag the gradients of the two values where these are positive, else 0:
    dh = g_gate + g_mag * exp(r_mag),  for x, W_enc and b_dec through `encoder_backward`,
    db_gate, db_mag, dr_mag = the sums over the tokens of a latent of g_gate, g_mag, and
    g_mag * exp(r_mag) * h.
The step function has no gradient. Saved for backward: x - b_dec, W_enc, r_mag, both values, h of
each slot and the pairs.

Non-finite values: a NaN of h makes a slot and comes out as NaN, with gradient 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import PairSums, pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encoder_backward import encoder_grad
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import RowGrads, row_grads_of


class _EncodeGated(torch.autograd.Function):
    """Attach the graph to codes that were already computed.

    h [nnz] is (x - b_dec) @ W_enc at each slot.
    """

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
        sums: PairSums,
        row_grads: RowGrads | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(centred, W_enc, r_mag, codes.values, gates.values, h)
        ctx.pairs, ctx.sums, ctx.row_grads = codes.by_latent(), sums, row_grads
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
        d_x, d_W, _, d_b_dec = encoder_grad(dh, centred, W_enc, pairs, sums, ctx.row_grads, needs)
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
    """Return the codes and the gate activations of a gated encoder.

    Source: Gated SAEs, Rajamanoharan et al. 2024, arXiv 2404.16014.

    Args:
        x: Activations, shape [batch, d_in].
        W_enc: Encoder weights, shape [d_in, d_sae]; fast if W_enc.t() is contiguous.
        b_gate, b_mag, r_mag: Gate bias, magnitude bias and log scale of the magnitude, [d_sae].
        b_dec: Subtracted from x, shape [d_in], or None.
        capacity: As in `encode_threshold`; both codes have `dropped`.
        backend: As in `decode`.

    Returns:
        codes: 1[pi_gate > 0] * relu(pi_mag), for the decoder. A slot with an open gate and a
            magnitude that is not positive is empty.
        gates: relu(pi_gate) > 0. Their sum is the L1 penalty, and the auxiliary loss decodes them
            with a constant decoder.
        Both are ragged with the same indices, offsets and pairs, and differentiable once in every
        input. autocast has no effect.

    Raises:
        ValueError: The capacity is negative, or the backend is unknown.
    """
    d_sae = W_enc.shape[1]
    if capacity is not None and capacity < 0:
        raise ValueError(f"capacity={capacity} must not be negative")
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_gated(x, W_enc, b_gate, b_mag, r_mag, b_dec)
    if backend == "triton":
        from sae_kernels.gpu.encode_threshold import above_floor
    else:
        from sae_kernels.cpu.encode_threshold import above_floor
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        acc_dtype = torch.promote_types(x.dtype, torch.float32)
        centred = x if b_dec is None else x - b_dec
        # pi_gate > 0 is tested as h > -b_gate, which is equivalent in floating point and keeps h.
        W_rows, no_bias = W_enc.t().contiguous(), torch.zeros_like(b_gate)
        slots = above_floor(centred, W_rows, no_bias, -b_gate.to(acc_dtype), capacity)
        h, indices = slots.pre, slots.indices
        is_slot = h != -torch.inf  # padding is -inf
        magnitude = h * r_mag.to(acc_dtype).exp()[indices] + b_mag.to(acc_dtype)[indices]
        acts = torch.where(is_slot, magnitude, 0).relu().to(x.dtype)
        gate = torch.where(is_slot, h + b_gate.to(acc_dtype)[indices], 0).relu().to(x.dtype)
    pairs = Pairs(slots.indices, slots.offsets, d_sae)
    codes = Codes(acts, slots.indices, d_sae, slots.offsets, slots.dropped, pairs)
    gates = Codes(gate, slots.indices, d_sae, slots.offsets, slots.dropped, pairs)
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
        row_grads_of(W_enc),
    )
    return codes, gates
