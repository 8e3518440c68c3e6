"""result[i] = sum over the batch and the width of (target - x_hat_i)^2, for nested x_hat_i.

Every slot has a level, and x_hat_i[b] = b_dec + sum over the slots of row b with level <= i of
value * W_dec[index]. values, indices, levels [batch, k] or ragged [nnz], W_dec [d_sae, d_in], b_dec
[d_in], target [batch, d_in], the floating ones of one dtype. Errors are kept in fp32, their squares
summed in fp32 along a row and in float64 over the rows on CPU (fp32 in Triton): the result is fp32,
or float64 for float64.

Backward, with E_i [batch, d_in] the errors, s_i = -2 * dL/dresult[i] and G_l = the sum over i >= l
of s_i * E_i:
    dvalues = <G_level[token], W_dec[index]>,  dW_dec[j] = sum over the slots of latent j of value *
    G_level[token],  db_dec = sum over the batch of G_0,  dtarget = -G_0.
Saved: values, W_dec, b_dec, target and the order of the slots. Errors are made again, a block of
columns at a time, so that [batch, n_levels, columns] stays bounded. Columns rather than rows: each
element of dW_dec is then written once, and no size depends on how many slots some rows have, which
the host would have to wait for.
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
from sae_kernels.decode_error import check_target
from sae_kernels.pairs import Pairs


def matryoshka_levels(codes: Codes, prefixes: Sequence[int]) -> Tensor:
    """Level of each slot: the first prefix of the dictionary that has its latent (Bussmann et al.
    2025). int64, shaped like codes.values.

    prefixes: widths, ascending, the last one d_sae. Raises ValueError for others.
    """
    widths = [0, *prefixes]
    ascending = all(low < high for low, high in zip(widths, widths[1:], strict=False))
    if not ascending or widths[-1] != codes.d_sae:
        raise ValueError(
            f"prefixes={list(prefixes)} must be positive, ascending and end with {codes.d_sae}"
        )
    levels = torch.zeros_like(codes.indices)
    for width in prefixes[:-1]:  # a tensor of the prefixes would have to be sent to the device
        levels += codes.indices >= width
    return levels


def rank_levels(codes: Codes) -> Tensor:
    """Level of each slot: how many slots of its row have a larger value (HierarchicalTopK,
    Balagansky et al. 2025); ties by slot. int64, shaped like codes.values.

    For a fixed k that is 0..k-1; for ragged codes 0..longest row - 1, and 0 for padding.
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
    # The rows lie in `order` where they lie in the codes.
    ranks = slots - codes.offsets[pairs.token_of_slot]
    return torch.empty_like(order).index_copy_(0, order, ranks.masked_fill_(padding, 0))


def by_level(codes: Codes, levels: Tensor, n_levels: int) -> tuple[Pairs, Tensor]:
    """The pairs as if every (token, level) were a row, and which slot of the codes each came from.

    Row token * n_levels + level; the slots are ordered by it.
    """
    tokens, count = codes.by_latent().token_of_slot, codes.batch * n_levels
    rows = tokens * n_levels + levels.flatten()
    if codes.offsets is not None:  # padding goes behind the last row
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
        ctx.how = pairs, order, n_levels, backend
        weights = values.flatten()[order]
        return _prefixes(backend).squares(pairs, n_levels, weights, W_dec, b_dec, target)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grads = prefixes_grad(grad, *ctx.saved_tensors, *ctx.how, ctx.needs_input_grad[:4])
        return *grads, None, None, None, None


def _prefixes(backend: str) -> ModuleType:
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
    """Gradients of values, W_dec, b_dec and target, each None where not needed.

    grad [n_levels]; pairs and order from `by_level`; needs: which of the four are wanted. W_dec's
    is made whole even where it could be handed over in parts: a part keeps its table, which here
    has n_levels rows a token.
    """
    need_values, need_W, need_b, need_target = needs
    sums, weights, dots = pair_sums(backend), values.flatten()[order], 0
    d_values = None
    d_W = torch.empty_like(W_dec) if need_W else None
    d_b = torch.empty_like(b_dec) if need_b else None
    d_target = torch.empty_like(target) if need_target else None
    blocks = _prefixes(backend).walks(pairs, n_levels, weights, W_dec, b_dec, target, -2 * grad)
    for columns, table, dot in blocks:
        dots = dots + dot
        if need_W:
            d_W[:, columns] = sums.sum_tokens(pairs, weights.to(table.dtype), table)
        first = table[::n_levels]
        if need_b:
            d_b[columns] = first.sum(0)
        if need_target:
            d_target[:, columns] = -first
    if need_values:
        # Padding comes last and no kernel writes it.
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
    """Squared error of every prefix: [n_levels], entry i of the reconstruction from the slots with
    level <= i, summed over the batch and the width.

    levels: int64, shaped like codes.values, in 0..n_levels - 1 (of padding, any number); from
    `matryoshka_levels` or `rank_levels`. codes, W_dec, b_dec and target as in `decode_error`. fp32
    or float64, differentiable (once) in codes.values, W_dec, b_dec and target.

    backend: as in `decode`. Raises ValueError for an unknown backend, a W_dec of another d_sae, a
    target or levels of another shape and, on CPU alone, where nothing has to be waited for, a level
    out of range.
    """
    if W_dec.shape[0] != codes.d_sae:
        raise ValueError(f"W_dec has {W_dec.shape[0]} rows but the codes have d_sae={codes.d_sae}")
    check_target(codes, W_dec, target)
    if levels.shape != codes.values.shape:
        raise ValueError(
            f"levels have shape {tuple(levels.shape)}; the values {tuple(codes.values.shape)}"
        )
    if torch.compiler.is_compiling() and backend != "reference":
        from sae_kernels.decode_ops import decode_prefixes_op

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
    pairs, order = by_level(codes, levels, n_levels)
    return _DecodePrefixes.apply(
        codes.values, W_dec, b_dec, target, pairs, order, n_levels, backend
    )
