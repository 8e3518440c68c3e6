"""residual = target - x_hat, and the sum of its squares, in one pass; x_hat as in `decode`.

values [batch, k] or ragged [nnz], W_dec [d_sae, d_in], b_dec [d_in], target [batch, d_in], all of
one dtype. The squares are summed in fp32 along a row and in float64 over the rows on CPU (fp32 in
Triton), so the sum is fp32 for half precision and fp32 and float64 for float64.

Backward, with s = -2 * dL/dsquared_error:
    dvalues = s * <residual[token], W_dec[index]>,  dW_dec[j] = sum over the tokens of latent j of
    (s * value) * residual[token],  db_dec = s * sum over the batch of residual,  dtarget = -s *
    residual.
s scales the values, not the residual: no second [batch, d_in] exists unless target needs a
gradient. Saved: values, W_dec and the residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_kernels import reference
from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.deterministic_sum import deterministic_sum
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import PairPart, RowGrads, deferred

_NORM_ROWS = 1024  # half precision is copied to fp32 for its norm, this many rows at a time


def _forward_torch(
    pairs: Pairs, weights: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    x_hat = pair_sums("torch").sum_latents(pairs, weights, W_dec).add_(b_dec)
    residual = torch.sub(target, x_hat, out=x_hat)
    wide = torch.promote_types(residual.dtype, torch.float32)
    # The norm of each row: as fast as one dot product of everything (0.10 ms against 0.12, 2048 x
    # 768, one core), which keeps all of it in a few fp32 sums and is off by 1.5e-5.
    norms = [torch.linalg.vector_norm(r, dim=1, dtype=wide) for r in residual.split(_NORM_ROWS)]
    return residual, deterministic_sum(torch.cat(norms).double().square()).to(wide)


class _DecodeError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        values: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        target: Tensor,
        pairs: Pairs,
        backend: str,
        sink: RowGrads | None,
    ) -> tuple[Tensor, Tensor]:
        if backend == "triton":
            from sae_kernels.gpu.decode_error import forward
        else:
            forward = _forward_torch
        residual, squared_error = forward(pairs, values.flatten(), W_dec, b_dec, target)
        ctx.mark_non_differentiable(residual)
        ctx.save_for_backward(values, W_dec, residual)
        ctx.how = pairs, pair_sums(backend), sink
        return residual, squared_error

    @staticmethod
    @once_differentiable
    def backward(ctx, _, grad: Tensor):
        grads = error_grad(grad, *ctx.saved_tensors, *ctx.how, ctx.needs_input_grad[:4])
        return *grads, None, None, None


def error_grad(
    grad: Tensor,
    values: Tensor,
    W_dec: Tensor,
    residual: Tensor,
    pairs: Pairs,
    sums: ModuleType,
    sink: RowGrads | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of values, W_dec, b_dec and target, each None where not needed.

    grad 0-d; needs: which of the four are wanted. With a sink W_dec's goes there in parts, and None
    is returned for it.
    """
    need_values, need_W, need_b, need_target = needs
    scale = -2 * grad
    d_values = d_W = d_b = d_target = None
    if need_values:
        d_values = _scaled(sums.dot_rows(pairs, residual, W_dec), scale).view_as(values)
    if need_W:
        weights = _scaled(values.flatten(), scale)
        if sink is not None:
            sink.pair_parts.append(PairPart(pairs, weights, residual))
        else:
            d_W = sums.sum_tokens(pairs, weights, residual)
    if need_b:
        d_b = _scaled(residual.sum(0), scale)
    if need_target:
        d_target = _scaled(residual, -scale)
    return d_values, d_W, d_b, d_target


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """tensor * scale in tensor's dtype; torch alone would round the scale to it first."""
    return (tensor * scale.reshape(1)).to(tensor.dtype)


def decode_error(
    codes: Codes, W_dec: Tensor, b_dec: Tensor, target: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(residual, squared_error): target minus the reconstruction, and the sum of its squares.

    codes and W_dec [d_sae, d_in] as in `decode`, b_dec [d_in], target [batch, d_in]. residual
    [batch, d_in] is a constant: no gradient flows through it, and it must not be changed in place
    before the backward pass. squared_error is 0-d, fp32 or float64, differentiable (once) in
    codes.values, W_dec, b_dec and target. A W_dec with `row_grads` gets its gradient in parts.

    backend: as in `decode`. Raises ValueError for an unknown backend, a W_dec of another d_sae or a
    target of another shape.
    """
    if W_dec.shape[0] != codes.d_sae:
        raise ValueError(f"W_dec has {W_dec.shape[0]} rows but the codes have d_sae={codes.d_sae}")
    check_target(codes, W_dec, target)
    if torch.compiler.is_compiling() and backend != "reference":
        from sae_kernels.decode_ops import decode_error_op

        return decode_error_op(
            codes.values, W_dec, b_dec, target, codes.indices, codes.offsets, backend
        )
    backend = resolve(backend, W_dec)
    if backend == "reference":
        return reference.decode_error(codes, W_dec, b_dec, target)
    return _DecodeError.apply(
        codes.values, W_dec, b_dec, target, codes.by_latent(), backend, deferred(W_dec)
    )


def check_target(codes: Codes, W_dec: Tensor, target: Tensor) -> None:
    expected = (codes.batch, W_dec.shape[1])
    if target.shape != expected:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; the codes and W_dec make {expected}"
        )
