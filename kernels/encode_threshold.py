"""acts = pre where pre = (x - b_dec) @ W_enc + b_enc exceeds theta, else 0: ReLU and JumpReLU.

x [batch, d_in], W_enc [d_in, d_sae] stored latent-major (W_enc.t() contiguous), b_enc [d_sae],
b_dec [d_in], all of one dtype; theta = max(threshold, 0), 0-d or [d_sae], fp32 or wider. On CPU
16-bit inputs are multiplied into fp32, compared in fp32 and rounded last; Triton compares the
product as rounded to the inputs' dtype. Pre-activations exist only for a bounded chunk of rows.

Backward: `encoder_backward`, with g = dL/dvalues where the value is positive, else 0. A threshold
learns by a straight-through estimator (Rajamanoharan et al. 2024, arXiv 2407.14435, equations 11
and 12) with the rectangle K = 1 where theta - bandwidth/2 < pre < theta + bandwidth/2, else 0:
    d acts / d theta = -(theta / bandwidth) K,  d gates / d theta = -K / bandwidth,
summed over the tokens of each latent in fp32 (float64 on CPU). Saved for backward: x - b_dec,
W_enc, values and the pairs; for a threshold that learns, also theta and K of each slot.

Non-finite values: NaN is above every threshold and comes out as NaN, with gradient 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from sae_kernels import reference
from sae_kernels.backend import PairSums, pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.encoder_backward import (
    SelectedPreActs,
    encoder_grad,
    fake_ragged,
    ragged_offsets,
    register_encoder_backward,
)
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import RowGrads, row_grads_of


def _check(d_sae: int, threshold: Tensor | None, capacity: int | None) -> None:
    """Raise ValueError for a threshold of the wrong shape or a negative capacity."""
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
    """Return the pre-activations that exceed max(threshold, 0), as ragged codes.

    This is ReLU without a threshold, and JumpReLU (Rajamanoharan et al. 2024) with a threshold that
    does not learn; `encode_jumprelu` has one that learns.

    Args:
        x, W_enc, b_enc, b_dec, backend: As in `encode_topk`.
        threshold: [d_sae], 0-d for all latents (BatchTopK at inference), or None. It gets no
            gradient.
        capacity: The number of slots to allocate, so that Triton need not wait for the device.
            Slots that do not fit are dropped from the end of the batch, and `codes.dropped` counts
            them; unused slots are padding. Without it, Triton reads one size back from the device
            for every chunk of rows. On CPU the sizes are known: capacity has no effect, and
            `dropped` is None.

    Returns:
        Codes with values [nnz] > 0, differentiable once in x, W_enc, b_enc and b_dec. autocast has
        no effect.

    Raises:
        ValueError: The threshold has another shape, the capacity is negative, or the backend is
            unknown.
    """
    d_sae = W_enc.shape[1]
    _check(d_sae, threshold, capacity)
    if torch.compiler.is_compiling() and backend != "reference":
        values, indices, offsets, dropped = encode_threshold_op(
            x, W_enc, b_enc, b_dec, threshold, capacity, backend
        )
        return Codes(values, indices, d_sae, offsets, dropped)
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_threshold(x, W_enc, b_enc, b_dec, threshold)
    if backend == "triton":
        from sae_kernels.gpu.encode_threshold import above_floor
    else:
        from sae_kernels.cpu.encode_threshold import above_floor
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        acc_dtype = torch.promote_types(x.dtype, torch.float32)
        theta = 0.0 if threshold is None else threshold.to(acc_dtype).clamp(min=0)
        centred = x if b_dec is None else x - b_dec
        W_rows = W_enc.t().contiguous()
        slots = above_floor(centred, W_rows, b_enc, theta, capacity)
        values = slots.pre.relu().to(x.dtype)
    pairs = Pairs(slots.indices, slots.offsets, d_sae)
    codes = Codes(values, slots.indices, d_sae, slots.offsets, slots.dropped, pairs)
    sums, row_grads = pair_sums(backend), row_grads_of(W_enc)
    codes.values = SelectedPreActs.apply(x, W_enc, b_enc, b_dec, centred, codes, sums, row_grads)
    return codes


def _theta_of_slots(theta: Tensor, indices: Tensor) -> Tensor:
    """Return theta of each slot, [nnz], or theta itself if it is one number."""
    return theta[indices] if theta.dim() else theta


class _EncodeJumpReLU(torch.autograd.Function):
    """Attach the graph to codes that were already computed.

    in_window [nnz] bool is the rectangle K of each slot.
    """

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
        sums: PairSums,
        row_grads: RowGrads | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(centred, W_enc, codes.values, theta, in_window)
        ctx.pairs, ctx.sums, ctx.row_grads = codes.by_latent(), sums, row_grads
        ctx.bandwidth, ctx.dtype = bandwidth, threshold.dtype
        return codes.values, (codes.values != 0).to(codes.values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_gates: Tensor):
        centred, W_enc, values, theta, in_window = ctx.saved_tensors
        pairs, sums = ctx.pairs, ctx.sums
        g = torch.where(values > 0, grad, 0)
        grads = encoder_grad(
            g, centred, W_enc, pairs, sums, ctx.row_grads, ctx.needs_input_grad[:4]
        )
        d_threshold = None
        if ctx.needs_input_grad[4]:
            theta_of_slots = _theta_of_slots(theta, pairs.indices)
            # A 0-d theta does not promote grad to its dtype.
            slope = -(theta_of_slots * grad.to(theta.dtype) + grad_gates) / ctx.bandwidth
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
    """Return the codes and gates of JumpReLU with a threshold that learns.

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435.

    Args:
        x, W_enc, b_enc, b_dec, backend: As in `encode_topk`.
        threshold: [d_sae] or 0-d, in the inputs' dtype or fp32; an fp32 threshold is not rounded to
            the inputs' dtype. A negative threshold acts as 0 and gets the gradient that 0 would.
        bandwidth: The width of the window around the threshold in which it gets a gradient.
        capacity: As in `encode_threshold`.

    Returns:
        codes: As in `encode_threshold`. They also list, as empty slots (value 0), pre-activations
            less than bandwidth / 2 below their threshold, because these move the threshold.
        gates: [nnz], in the dtype of the values, 1 for a slot that fires and 0 for one that does
            not. Their sum is the batch's L0, differentiable in the threshold only. In bf16, sum
            them with dtype=torch.float32.

    Raises:
        ValueError: As in `encode_threshold`, or the bandwidth is not positive.
    """
    d_sae = W_enc.shape[1]
    _check(d_sae, threshold, capacity)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth={bandwidth} must be positive")
    backend = resolve(backend, W_enc)
    if backend == "reference":
        return reference.encode_jumprelu(x, W_enc, b_enc, threshold, b_dec, bandwidth)
    if backend == "triton":
        from sae_kernels.gpu.encode_threshold import above_floor
    else:
        from sae_kernels.cpu.encode_threshold import above_floor
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        acc_dtype = torch.promote_types(x.dtype, torch.float32)
        theta = threshold.to(acc_dtype).clamp(min=0)
        centred = x if b_dec is None else x - b_dec
        W_rows = W_enc.t().contiguous()
        floor = theta - bandwidth / 2
        slots = above_floor(centred, W_rows, b_enc, floor, capacity)
        thetas = _theta_of_slots(theta, slots.indices)
        values = torch.where(slots.pre <= thetas, 0, slots.pre).to(x.dtype)
        # Padding is -inf, and an infinite pre-activation is outside every window.
        low, high = thetas - bandwidth / 2, thetas + bandwidth / 2
        in_window = (slots.pre > low) & (slots.pre < high)
    pairs = Pairs(slots.indices, slots.offsets, d_sae)
    codes = Codes(values, slots.indices, d_sae, slots.offsets, slots.dropped, pairs)
    sums, row_grads = pair_sums(backend), row_grads_of(W_enc)
    codes.values, gates = _EncodeJumpReLU.apply(
        x,
        W_enc,
        b_enc,
        b_dec,
        threshold,
        centred,
        codes,
        theta,
        in_window,
        bandwidth,
        sums,
        row_grads,
    )
    return codes, gates


@custom_op("sae_kernels::encode_threshold", mutates_args=())
def encode_threshold_op(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    threshold: Tensor | None,
    capacity: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return values, indices, offsets and the number of dropped slots, 0 if it is not counted."""
    codes = encode_threshold(
        x, W_enc, b_enc, b_dec, threshold=threshold, capacity=capacity, backend=backend
    )
    offsets = ragged_offsets(codes)
    dropped = offsets.new_zeros(()) if codes.dropped is None else codes.dropped
    return codes.values, codes.indices, offsets, dropped


@encode_threshold_op.register_fake
def _(x, W_enc, b_enc, b_dec, threshold, capacity, backend):
    on_triton = backend == "triton" or (backend == "auto" and x.is_cuda)
    if capacity is None or not on_triton:
        size = torch.library.get_ctx().new_dynamic_size()
    else:
        size = capacity
    return *fake_ragged(x, size), x.new_empty((), dtype=torch.int64)


register_encoder_backward(encode_threshold_op)
