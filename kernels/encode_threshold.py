"""acts = pre where pre = (x - b_dec) @ W_enc + b_enc exceeds theta, else 0: ReLU and JumpReLU.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc [d_sae],
b_dec [d_in], all of one dtype; theta = max(threshold, 0), 0-d or [d_sae], fp32 or wider. On CPU
bf16 is multiplied into fp32, compared in fp32 and rounded last; Triton compares the product as it
is rounded to the inputs' dtype. Pre-activations exist for a bounded chunk of rows only.

Backward: `encoder_backward`, with g = dL/dvalues where the value is positive, else 0. A threshold
learns straight through (Rajamanoharan et al. 2024, arXiv 2407.14435, equations 11 and 12), with the
rectangle K = 1 where theta - bandwidth/2 < pre < theta + bandwidth/2, else 0:
    d acts / d theta = -(theta / bandwidth) K,  d gates / d theta = -K / bandwidth,
summed over the tokens of each latent in fp32 (float64 on CPU). Saved: x - b_dec, W_enc, values and
the pairs; for a threshold that learns, theta and K of each slot too.

Not finite: NaN is above every threshold and comes out as NaN, with gradient 0.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import compaction, pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encoder_backward import Selected, encoder_grad
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import RowGrads, deferred


def _check(d_sae: int, threshold: Tensor | None, capacity: int | None) -> None:
    if threshold is not None and threshold.shape not in ((), (d_sae,)):
        shape = tuple(threshold.shape)
        raise ValueError(f"threshold has shape {shape}; it must be a number or have d_sae={d_sae}")
    if capacity is not None and capacity < 0:
        raise ValueError(f"capacity={capacity} must not be negative")


def encode_threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None = None,
    *,
    threshold: Tensor | None = None,
    capacity: int | None = None,
    backend: str = "auto",
) -> Codes:
    """pre = (x - b_dec) @ W_enc + b_enc where it exceeds max(threshold, 0): JumpReLU
    (Rajamanoharan et al. 2024) with a threshold that does not learn; without one, ReLU.

    x [batch, d_in], W_enc [d_in, d_sae] (fast when W_enc.t() is contiguous), b_enc [d_sae], b_dec
    [d_in] or None; threshold [d_sae], or 0-d for all latents (BatchTopK at inference). Returns
    ragged Codes, values [nnz] > 0, differentiable once in x, W_enc, b_enc and b_dec. No gradient
    reaches the threshold: see `encode_jumprelu`. autocast has no effect.

    capacity: slots to allocate, so that Triton need not wait for the device. What does not fit is
    left out from the end of the batch, and `codes.dropped` (int64, 0-d) counts it; slots that are
    not used are padding. Without it Triton reads one size back from the device for every chunk of
    rows. CPU knows the sizes: capacity has no effect, and `dropped` is None.

    backend: as in `decode`. Raises ValueError for a threshold of another shape, a negative capacity
    and an unknown backend.
    """
    d_sae = W_enc.shape[1]
    _check(d_sae, threshold, capacity)
    if torch.compiler.is_compiling() and backend != "reference":
        from sae_kernels.encode_ops import encode_threshold_op

        made = encode_threshold_op(x, W_enc, b_enc, b_dec, threshold, capacity, backend)
        values, indices, offsets, dropped = made
        return Codes(values, indices, d_sae, offsets, dropped)
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_threshold(x, W_enc, b_enc, b_dec, threshold)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        theta = 0.0 if threshold is None else threshold.to(wide).clamp(min=0)
        centred = x if b_dec is None else x - b_dec
        compact = compaction(backend)
        W_rows = W_enc.t().contiguous()
        slots = compact.above_floor(centred, W_rows, b_enc, theta, capacity)
        values = slots.pre.relu().to(x.dtype)
    pairs = Pairs(slots.indices, slots.offsets, d_sae)
    codes = Codes(values, slots.indices, d_sae, slots.offsets, slots.dropped, pairs)
    sums, sink = pair_sums(backend), deferred(W_enc)
    codes.values = Selected.apply(x, W_enc, b_enc, b_dec, centred, codes, sums, sink)
    return codes


def _of_slot(theta: Tensor, indices: Tensor) -> Tensor:
    return theta[indices] if theta.dim() else theta


class _EncodeJumpReLU(torch.autograd.Function):
    """Attaches the graph to codes that were already made. in_window [nnz] bool: K."""

    @staticmethod
    def forward(
        ctx,
        x,
        W_enc,
        b_enc,
        b_dec,
        threshold,
        centred: Tensor,
        codes: Codes,
        theta: Tensor,
        in_window: Tensor,
        bandwidth: float,
        sums: ModuleType,
        sink: RowGrads | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(centred, W_enc, codes.values, theta, in_window)
        ctx.pairs, ctx.sums, ctx.sink = codes.by_latent(), sums, sink
        ctx.bandwidth, ctx.dtype = bandwidth, threshold.dtype
        return codes.values, (codes.values != 0).to(codes.values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_gates: Tensor):
        centred, W_enc, values, theta, in_window = ctx.saved_tensors
        pairs, sums = ctx.pairs, ctx.sums
        g = torch.where(values > 0, grad, 0)
        grads = encoder_grad(g, centred, W_enc, pairs, sums, ctx.sink, ctx.needs_input_grad[:4])
        d_threshold = None
        if ctx.needs_input_grad[4]:
            at = _of_slot(theta, pairs.indices)  # a number does not widen grad by itself
            slope = -(at * grad.to(theta.dtype) + grad_gates) / ctx.bandwidth
            d_theta = sums.sum_weights(pairs, torch.where(in_window, slope, 0))
            d_threshold = (d_theta if theta.dim() else d_theta.sum()).to(ctx.dtype)
        return *grads, d_threshold, *[None] * 7


def encode_jumprelu(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    threshold: Tensor,
    b_dec: Tensor | None = None,
    *,
    bandwidth: float,
    capacity: int | None = None,
    backend: str = "auto",
) -> tuple[Codes, Tensor]:
    """JumpReLU whose threshold learns (Rajamanoharan et al. 2024): (codes, gates).

    As `encode_threshold`, with these differences. threshold [d_sae] or 0-d, of the inputs' dtype or
    fp32, which is not rounded to the inputs' dtype. Codes also list what lies less than bandwidth /
    2 below its threshold, as empty slots (value 0): they move the threshold. gates [nnz], of the
    values' dtype, is 1 where a slot fires and 0 where it does not: their sum is the batch's L0, and
    it is differentiable in the threshold alone. In bf16 sum them with dtype=torch.float32. A
    negative threshold acts as 0, and has the gradient that 0 would have.

    Raises ValueError also for a bandwidth that is not positive.
    """
    d_sae = W_enc.shape[1]
    _check(d_sae, threshold, capacity)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth={bandwidth} must be positive")
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_jumprelu(x, W_enc, b_enc, threshold, b_dec, bandwidth)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        theta = threshold.to(wide).clamp(min=0)
        centred = x if b_dec is None else x - b_dec
        compact = compaction(backend)
        W_rows = W_enc.t().contiguous()
        floor = theta - bandwidth / 2
        slots = compact.above_floor(centred, W_rows, b_enc, floor, capacity)
        at = _of_slot(theta, slots.indices)
        values = torch.where(slots.pre <= at, 0, slots.pre).to(x.dtype)
        # Padding is -inf, and an infinite pre-activation is outside every window.
        in_window = (slots.pre > at - bandwidth / 2) & (slots.pre < at + bandwidth / 2)
    pairs = Pairs(slots.indices, slots.offsets, d_sae)
    codes = Codes(values, slots.indices, d_sae, slots.offsets, slots.dropped, pairs)
    sums, sink = pair_sums(backend), deferred(W_enc)
    codes.values, gates = _EncodeJumpReLU.apply(
        x, W_enc, b_enc, b_dec, threshold, centred, codes, theta, in_window, bandwidth, sums, sink
    )
    return codes, gates
