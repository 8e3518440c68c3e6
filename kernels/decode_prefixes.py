"""result[i] = sum over the batch and the width of (target - x_hat_i)^2, for nested x_hat_i.

Every slot has a level, and x_hat_i[b] = b_dec + sum over the slots of row b with level <= i of
value * W_dec[index]. values, indices, levels [batch, k] or ragged [nnz], W_dec [d_sae, d_in], b_dec
[d_in], target [batch, d_in]; the floating-point ones have one dtype. Errors are kept in fp32. Their
squares are summed in fp32 along a row and in float64 over the rows on CPU (fp32 in Triton). The
result is fp32, or float64 for float64.

Backward, with E_i [batch, d_in] the errors, s_i = -2 * dL/dresult[i] and G_l = the sum over i >= l
of s_i * E_i:
    dvalues = <G_level[token], W_dec[index]>,
    dW_dec[j] = sum over the slots of latent j of value * G_level[token],
    db_dec = sum over the batch of G_0,
    dtarget = -G_0.
Saved for backward: values, W_dec, b_dec, target and the order of the slots. The errors are computed
again, a block of columns at a time, so that [batch, n_levels, columns] stays bounded. With blocks
of columns instead of rows, each element of dW_dec is written once, and no size depends on how many
slots the rows have, which the host would have to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from sae_kernels import reference
from sae_kernels.backend import pair_sums, resolve
from sae_kernels.codes import Codes
from sae_kernels.custom_op import (
    accumulation_dtype,
    empty_like_needed,
    register_backward,
    select_needed,
)
from sae_kernels.decode import check_d_sae
from sae_kernels.decode_error import check_target
from sae_kernels.pairs import Pairs


def matryoshka_levels(codes: Codes, prefixes: Sequence[int]) -> Tensor:
    """Return the level of each slot: the first prefix of the dictionary that has its latent.

    Source: Matryoshka SAEs, Bussmann et al. 2025.

    Args:
        codes: The codes of the batch.
        prefixes: The widths of the prefixes, ascending; the last one is d_sae.

    Returns:
        int64, shaped like codes.values.

    Raises:
        ValueError: The prefixes are not positive, not ascending, or do not end with d_sae.
    """
    widths = [0, *prefixes]
    ascending = all(low < high for low, high in zip(widths, widths[1:], strict=False))
    if not ascending or widths[-1] != codes.d_sae:
        raise ValueError(
            f"prefixes={list(prefixes)} must be positive, ascending and end with {codes.d_sae}"
        )
    levels = torch.zeros_like(codes.indices)
    for width in prefixes[:-1]:  # no tensor of prefixes, which would be copied to the device
        levels += codes.indices >= width
    return levels


def rank_levels(codes: Codes) -> Tensor:
    """Return the level of each slot: how many slots of its row have a larger value.

    Ties are broken by the order of the slots. The levels are 0..k - 1 for a fixed k, and
    0..(longest row) - 1 for ragged codes; 0 for padding. int64, shaped like codes.values.
    Source: HierarchicalTopK, Balagansky et al. 2025.
    """
    pairs = codes.by_latent()
    values = codes.values.detach()
    if codes.offsets is None:
        order = values.sort(dim=1, descending=True, stable=True).indices
        ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.zeros_like(order).scatter_(1, order, ranks)
    slots = torch.arange(len(values), device=values.device)
    padding = slots >= codes.offsets[-1]
    tokens = pairs.token_of_slot.masked_fill(padding, codes.batch)
    order = values.sort(descending=True, stable=True).indices
    order = order[tokens[order].sort(stable=True).indices]
    # Each row has the same positions in `order` as in the codes.
    ranks = slots - codes.offsets[pairs.token_of_slot]
    return torch.empty_like(order).index_copy_(0, order, ranks.masked_fill_(padding, 0))


def pairs_by_level(codes: Codes, levels: Tensor, n_levels: int) -> tuple[Pairs, Tensor]:
    """Return the pairs with one row for each (token, level), and the slot that each came from.

    The row of a pair is token * n_levels + level, and the slots are ordered by it.
    """
    tokens, count = codes.by_latent().token_of_slot, codes.batch * n_levels
    rows = tokens * n_levels + levels.flatten()
    if codes.offsets is not None:  # padding is sorted behind the last row
        slots = torch.arange(len(rows), device=rows.device)
        rows.masked_fill_(slots >= codes.offsets[-1], count)
    rows, order = rows.to(torch.int32).sort(stable=True)
    bounds = torch.arange(count + 1, dtype=torch.int32, device=rows.device)
    starts = torch.searchsorted(rows, bounds)
    return Pairs(codes.indices.flatten()[order], starts, codes.d_sae), order


class _DecodePrefixes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        values: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        target: Tensor,
        pairs: Pairs,
        order: Tensor,
        n_levels: int,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(values, W_dec, b_dec, target)
        ctx.context = pairs, order, n_levels, backend
        weights = values.flatten()[order]
        prefix_sums = _prefix_sums(backend)
        return prefix_sums.squared_errors(pairs, n_levels, weights, W_dec, b_dec, target)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        needs = ctx.needs_input_grad[:4]
        grads = prefixes_grad(grad, *ctx.saved_tensors, *ctx.context, needs=needs)
        return *grads, None, None, None, None


class PrefixSums(Protocol):
    """The two halves of the op that depend on the backend: `cpu.` and `gpu.decode_prefixes`."""

    def squared_errors(
        self,
        pairs: Pairs,
        n_levels: int,
        weights: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        target: Tensor,
    ) -> Tensor:
        """Return the sum of squared errors of each prefix, [n_levels]."""
        ...

    def error_gradients(
        self,
        pairs: Pairs,
        n_levels: int,
        weights: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        target: Tensor,
        scale: Tensor,
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (columns, G, dot products) for each block of columns."""
        ...


def _prefix_sums(backend: str) -> PrefixSums:
    if backend == "triton":
        from sae_kernels.gpu import decode_prefixes
    else:
        from sae_kernels.cpu import decode_prefixes
    return decode_prefixes


def prefixes_grad(
    grad: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    pairs: Pairs,
    order: Tensor,
    n_levels: int,
    backend: str,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of values, W_dec, b_dec and target, each None if it is not needed.

    The gradient of W_dec is dense even if W_dec has `row_grads`: a part keeps its table alive,
    which here has n_levels rows per token.

    Args:
        grad: dL/dresult, shape [n_levels].
        values, W_dec, b_dec, target: The saved tensors.
        pairs, order: From `pairs_by_level`.
        n_levels: The number of levels.
        backend: A resolved backend.
        needs: Which of the four gradients are needed.
    """
    need_values, need_W, need_b, need_target = needs
    sums, weights = pair_sums(backend), values.flatten()[order]
    acc_dtype = torch.promote_types(W_dec.dtype, torch.float32)
    dots = torch.zeros(len(weights), dtype=acc_dtype, device=W_dec.device)
    d_values = None
    d_W = torch.empty_like(W_dec) if need_W else None
    d_b = torch.empty_like(b_dec) if need_b else None
    d_target = torch.empty_like(target) if need_target else None
    prefix_sums = _prefix_sums(backend)
    blocks = prefix_sums.error_gradients(pairs, n_levels, weights, W_dec, b_dec, target, -2 * grad)
    for columns, table, block_dots in blocks:
        dots = dots + block_dots
        if d_W is not None:
            d_W[:, columns] = sums.sum_tokens(pairs, weights.to(table.dtype), table)
        first = table[::n_levels]
        if d_b is not None:
            d_b[columns] = first.sum(0)
        if d_target is not None:
            d_target[:, columns] = -first
    if need_values:
        # Padding comes last, and no kernel writes to it.
        slots = torch.arange(len(order), device=order.device)
        dots = torch.where(slots < pairs.row_starts[-1], dots, 0).to(values.dtype)
        d_values = torch.empty_like(dots).index_copy_(0, order, dots).view_as(values)
    return d_values, d_W, d_b, d_target


def decode_prefixes(
    codes: Codes,
    levels: Tensor,
    n_levels: int,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Return the squared error of every prefix, summed over the batch and the width.

    Entry i is the error of the reconstruction from the slots with level <= i.

    Args:
        codes, W_dec, b_dec, target: As in `decode_error`.
        levels: int64, shaped like codes.values, in 0..n_levels - 1 (any number in padding); from
            `matryoshka_levels` or `rank_levels`.
        n_levels: The number of levels.
        backend: As in `decode`.

    Returns:
        [n_levels], fp32 or float64, differentiable once in codes.values, W_dec, b_dec and target.

    Raises:
        ValueError: The backend is unknown, or a shape does not fit the codes. On CPU also if a
            level is out of range; on a GPU this check would have to wait for the device.
    """
    check_d_sae(codes, W_dec)
    check_target(codes, W_dec, target)
    if levels.shape != codes.values.shape:
        raise ValueError(
            f"levels have shape {tuple(levels.shape)}; the values {tuple(codes.values.shape)}"
        )
    if torch.compiler.is_compiling() and backend != "reference":
        return decode_prefixes_op(
            codes.values,
            W_dec,
            b_dec,
            target,
            codes.indices,
            codes.offsets,
            levels,
            n_levels,
            backend,
        )
    if levels.device.type == "cpu":
        used = levels if codes.offsets is None else levels[: codes.offsets[-1]]
        if ((used < 0) | (used >= n_levels)).any():
            raise ValueError(f"levels must lie between 0 and n_levels - 1 = {n_levels - 1}")
    backend = resolve(backend, W_dec)
    if backend == "reference":
        return reference.decode_prefixes(codes, levels, n_levels, W_dec, b_dec, target)
    pairs, order = pairs_by_level(codes, levels, n_levels)
    return _DecodePrefixes.apply(
        codes.values, W_dec, b_dec, target, pairs, order, n_levels, backend
    )


@custom_op("sae_kernels::decode_prefixes", mutates_args=())
def decode_prefixes_op(
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    levels: Tensor,
    n_levels: int,
    backend: str,
) -> Tensor:
    codes = Codes(values, indices, len(W_dec), offsets)
    return decode_prefixes(codes, levels, n_levels, W_dec, b_dec, target, backend=backend)


@decode_prefixes_op.register_fake
def _(values, W_dec, b_dec, target, indices, offsets, levels, n_levels, backend):
    return target.new_empty(n_levels, dtype=accumulation_dtype(target))


@custom_op("sae_kernels::decode_prefixes_backward", mutates_args=())
def decode_prefixes_backward_op(
    grad: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    levels: Tensor,
    backend: str,
    needs: list[bool],
) -> list[Tensor]:
    codes, n_levels = Codes(values, indices, len(W_dec), offsets), len(grad)
    context = *pairs_by_level(codes, levels, n_levels), n_levels, resolve(backend, W_dec)
    return select_needed(prefixes_grad(grad, values, W_dec, b_dec, target, *context, needs), needs)


@decode_prefixes_backward_op.register_fake
def _(grad, values, W_dec, b_dec, target, indices, offsets, levels, backend, needs):
    return empty_like_needed((values, W_dec, b_dec, target), needs)


register_backward(decode_prefixes_op, decode_prefixes_backward_op, 4, lambda inputs, _: inputs[:7])
