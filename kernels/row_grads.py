"""The gradient of a matrix with one row a latent, kept in parts until the update consumes it.

A step touches W_enc and W_dec through the pairs of the batch, so row j of their gradients is
    sum over the parts, over the tokens of latent j in that part, of weight * table[token],
plus, for the latents that `aux_error` lists, rows that are already summed. Multiplied out it is as
large as the parameter (2 x 75 MB at 768 x 24,576) and would be written, read for the norm, and read
again for the update. `adam_rows_` and `square_norm` make a few rows at a time instead and drop
them: for a global norm they are made twice, which costs 1% of the encoder's product.

A parameter opts in: `param.row_grads = RowGrads()`. The ops then hand over the parts and leave
`param.grad` alone; whatever else autograd brings to `param.grad` is added by the update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from sae_kernels.pairs import Pairs


class PairPart(NamedTuple):
    """Row j += the sum over the tokens of latent j of weights[slot] * table[token]."""

    pairs: Pairs
    weights: Tensor
    table: Tensor


class RowPart(NamedTuple):
    """Row latents[i] += rows[i]; latents ascending, without repeats."""

    latents: Tensor
    rows: Tensor


@dataclass(eq=False)
class RowGrads:
    """What one or more backward passes left for one [d_sae, d] matrix."""

    pair_parts: list[PairPart] = field(default_factory=list)
    row_parts: list[RowPart] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.pair_parts or self.row_parts)

    def clear(self) -> None:
        self.pair_parts.clear()
        self.row_parts.clear()


def deferred(param: Tensor) -> RowGrads | None:
    """Where the gradient of `param` goes in parts, or None when autograd shall have it whole."""
    return getattr(param, "row_grads", None)
