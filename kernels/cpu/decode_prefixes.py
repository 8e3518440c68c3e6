"""The squared errors of nested reconstructions, and the sums behind their gradients, on CPU.

`pairs` has a row for every (token, level), token by token, and `weights` [nnz] has the same order
(see `pairs_by_level`). `gpu.decode_prefixes` has the same two functions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_kernels.cpu.spmm import dot_rows, sum_latents
from sae_kernels.pairs import Pairs

_CHUNK_ELEMENTS = 2**22  # 16 MB of fp32
_MIN_COLUMNS = 64


def column_blocks(width: int, rows: int, elements: int) -> Iterator[slice]:
    """Yield runs of columns with rows * columns <= elements, but of at least 64 columns.

    Below 256 bytes, finding a row costs more than reading it.
    """
    step = max(elements // max(rows, 1) // _MIN_COLUMNS, 1) * _MIN_COLUMNS
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def _errors(pairs: Pairs, n_levels: int, weights: Tensor, W: Tensor, b: Tensor, target: Tensor):
    """Return target - x_hat_i for every prefix i: [batch, n_levels, columns]."""
    sums = sum_latents(pairs, weights, W).view(len(target), n_levels, W.shape[1])
    error = target - b
    for level in range(n_levels):
        error = torch.sub(error, sums[:, level], out=sums[:, level])
    return sums


def _column_blocks(
    pairs: Pairs, weights: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """Yield (columns, (weights, W_dec, b_dec, target) in those columns, in fp32 or wider)."""
    acc_dtype = torch.promote_types(W_dec.dtype, torch.float32)
    weights = weights.to(acc_dtype)
    for columns in column_blocks(W_dec.shape[1], pairs.batch, _CHUNK_ELEMENTS):
        W = W_dec[:, columns].to(acc_dtype).contiguous()
        yield columns, (weights, W, b_dec[columns].to(acc_dtype), target[:, columns].to(acc_dtype))


def squared_errors(
    pairs: Pairs, n_levels: int, weights: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> Tensor:
    """Return the sum of squared errors of each prefix: [n_levels]."""
    total = torch.zeros(n_levels, dtype=torch.float64, device=W_dec.device)
    for _, inputs in _column_blocks(pairs, weights, W_dec, b_dec, target):
        norms = torch.linalg.vector_norm(_errors(pairs, n_levels, *inputs), dim=2)
        total += norms.double().square().sum(0)
    return total.to(torch.promote_types(W_dec.dtype, torch.float32))


def error_gradients(
    pairs: Pairs,
    n_levels: int,
    weights: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    scale: Tensor,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (columns, G, dot products) for each block of columns.

    G is [batch * n_levels, columns]; its row (token, l) is the sum over i >= l of
    scale[i] * error_i[token]. The dot products are <G[row], W_dec[latent]> over those columns, one
    for each slot: [nnz].
    """
    for columns, inputs in _column_blocks(pairs, weights, W_dec, b_dec, target):
        table = _errors(pairs, n_levels, *inputs).mul_(scale[:, None])
        for level in range(n_levels - 2, -1, -1):
            table[:, level] += table[:, level + 1]
        table = table.flatten(0, 1)
        yield columns, table, dot_rows(pairs, table, inputs[1])
