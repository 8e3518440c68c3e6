"""The gradient of a matrix with one row per latent, kept in parts until the update consumes it.

A step touches W_enc and W_dec only through the pairs of the batch. Row j of their gradients is
    the sum over the parts, over the tokens of latent j in that part, of weight * table[token],
plus rows that are already summed, for the latents that `aux_error` and `pre_act_loss` list. Summed
up, the gradient is as large as the parameter (2 x 75 MB at 768 x 24,576); it would be written, read
for the norm, and read again for the update. `adam_rows_` and `square_norm` compute a few rows at a
time instead and drop them. For a global norm they are computed twice, which costs 1% of the
encoder's product.

A parameter opts in with `param.row_grads = RowGrads()`. The ops then append parts to it and leave
`param.grad` alone; the update adds whatever else autograd puts into `param.grad`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from sae_kernels.pairs import Pairs


class PairPart(NamedTuple):
    """A part that adds, to row j, the sum over the tokens of latent j of weight * table[token].

    weights is [nnz], one number a slot; table has one row a token.
    """

    pairs: Pairs
    weights: Tensor
    table: Tensor


class RowPart(NamedTuple):
    """A part that adds rows[i] to row latents[i]; latents ascend and do not repeat."""

    latents: Tensor
    rows: Tensor


@dataclass(eq=False)
class RowGrads:
    """The parts that one or more backward passes left for one [d_sae, d] matrix."""

    pair_parts: list[PairPart] = field(default_factory=list)
    row_parts: list[RowPart] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.pair_parts or self.row_parts)

    def clear(self) -> None:
        """Drop all parts."""
        self.pair_parts.clear()
        self.row_parts.clear()


def row_grads_of(param: Tensor) -> RowGrads | None:
    """Return the `RowGrads` that the gradient of `param` goes to, or None if it is to be dense."""
    return getattr(param, "row_grads", None)
