"""Squared errors of nested reconstructions and the rows their gradients are sums of, on CPU.

`pairs` has a row for every (token, level), token by token; `weights` [nnz] lie in its order.
`gpu.decode_prefixes` has the same two functions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_kernels.cpu.spmm import dot_rows, sum_latents
from sae_kernels.pairs import Pairs

_CHUNK_ELEMENTS = 2**22  # 16 MB of fp32, as in `_product`
_MIN_COLUMNS = 64


def column_blocks(width: int, rows: int, elements: int) -> Iterator[slice]:
    """Runs of columns with rows * columns <= elements, but of no fewer than 64: below 256 bytes,
    finding a row costs more than reading it."""
    step = max(elements // max(rows, 1) // _MIN_COLUMNS, 1) * _MIN_COLUMNS
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def _errors(pairs: Pairs, n_levels: int, weights: Tensor, W: Tensor, b: Tensor, target: Tensor):
    """[batch, n_levels, columns]: target - x_hat_i."""
    sums = sum_latents(pairs, weights, W).view(len(target), n_levels, W.shape[1])
    before = target - b
    for level in range(n_levels):
        before = torch.sub(before, sums[:, level], out=sums[:, level])
    return sums


def _wide_blocks(
    pairs: Pairs, weights: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    wide = torch.promote_types(W_dec.dtype, torch.float32)
    weights = weights.to(wide)
    for columns in column_blocks(W_dec.shape[1], pairs.batch, _CHUNK_ELEMENTS):
        W = W_dec[:, columns].to(wide).contiguous()
        yield columns, (weights, W, b_dec[columns].to(wide), target[:, columns].to(wide))


def squares(
    pairs: Pairs, n_levels: int, weights: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> Tensor:
    """[n_levels]: the sum of the squared errors of each prefix."""
    total = torch.zeros(n_levels, dtype=torch.float64, device=W_dec.device)
    for _, inputs in _wide_blocks(pairs, weights, W_dec, b_dec, target):
        norms = torch.linalg.vector_norm(_errors(pairs, n_levels, *inputs), dim=2)
        total += norms.double().square().sum(0)
    return total.to(torch.promote_types(W_dec.dtype, torch.float32))


def walks(
    pairs: Pairs,
    n_levels: int,
    weights: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    scale: Tensor,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For each block of columns: them; G [batch * n_levels, columns], row (token, l) the sum over i
    >= l of scale[i] * error_i[token]; and <G[row], W_dec[latent]> [nnz] in those columns."""
    for columns, inputs in _wide_blocks(pairs, weights, W_dec, b_dec, target):
        table = _errors(pairs, n_levels, *inputs).mul_(scale[:, None])
        for level in range(n_levels - 2, -1, -1):
            table[:, level] += table[:, level + 1]
        table = table.flatten(0, 1)
        yield columns, table, dot_rows(pairs, table, inputs[1])
