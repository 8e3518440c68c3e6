"""The sparse code that encoders return and that decoders, losses, metrics and files take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sae_kernels.pairs import Pairs


@dataclass(eq=False)
class Codes:
    """The active (token, latent, value) triples of a batch, ordered by token.

    A slot with value 0 is empty: its index is valid but has no meaning. The order of the slots
    within a row is not specified. An encoder never puts a latent twice in one row; if a caller
    does, the values add.

    Args:
        values: [batch, k], or [nnz] if rows have different lengths (ragged codes).
        indices: The latent of each slot, int64 in [0, d_sae), shaped like `values`.
        d_sae: The number of latents.
        offsets: None for a fixed k. Otherwise int64 [batch + 1]: row b is
            values[offsets[b] : offsets[b + 1]]. Slots from offsets[-1] on are padding: they are
            empty and belong to no row. Ragged codes of a size that was fixed beforehand have it.
        dropped: The number of slots that did not fit into such a size, int64 0-d; None if nothing
            can be dropped.
        leading: The leading dimensions of the activations, if these were not [batch, d_in].
            `to_dense` and `l0` restore them; all else sees rows.
    """

    values: Tensor
    indices: Tensor
    d_sae: int
    offsets: Tensor | None = None
    dropped: Tensor | None = None
    _pairs: Pairs | None = field(default=None, repr=False)
    leading: tuple[int, ...] | None = None

    @property
    def batch(self) -> int:
        """The number of rows (tokens)."""
        return self.values.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    def by_latent(self) -> Pairs:
        """Return the pairs of the code, by token and by latent; computed once and kept."""
        if self._pairs is None:
            self._pairs = Pairs(self.indices, self.offsets, self.d_sae)
        return self._pairs

    def to_dense(self) -> Tensor:
        """Return the dense code [..., d_sae], differentiable in `values`.

        It is meant for tests and metrics, never for the training step.
        """
        positions = self.by_latent().token_of_slot * self.d_sae + self.indices.flatten()
        dense = self.values.new_zeros(self.batch * self.d_sae)
        dense = dense.index_add(0, positions, self.values.flatten())
        return dense.view(*self._leading(), self.d_sae)

    def l0(self) -> Tensor:
        """Return the number of non-zero values of each activation, int64 [...]."""
        active = self.values != 0
        if self.offsets is None:
            return active.sum(1).view(self._leading())
        before = torch.nn.functional.pad(active.cumsum(0), (1, 0))
        return (before[self.offsets[1:]] - before[self.offsets[:-1]]).view(self._leading())

    def _leading(self) -> tuple[int, ...]:
        return (self.batch,) if self.leading is None else self.leading

    def fired(self) -> Tensor:
        """Return which latents are non-zero on at least one token, bool [d_sae]."""
        # index_fill_ writes the same value everywhere, so the order of writes cannot matter. Empty
        # slots go to an extra latent instead of being filtered, which would wait for the device.
        hits = torch.zeros(self.d_sae + 1, dtype=torch.bool, device=self.values.device)
        latents = torch.where(self.values != 0, self.indices, self.d_sae)
        return hits.index_fill_(0, latents.flatten(), True)[:-1]

    def detach(self) -> Codes:
        """Return the same codes without a graph; the pairs stay shared."""
        return replace(self, values=self.values.detach(), _pairs=self.by_latent())

    def rows(self, rows: slice) -> Codes:
        """Return the codes of a contiguous run of tokens. Ragged codes wait for the device."""
        start, stop, step = rows.indices(self.batch)
        assert step == 1, "rows must be contiguous"
        stop = max(start, stop)
        if self.offsets is None:
            return Codes(self.values[start:stop], self.indices[start:stop], self.d_sae)
        offsets = self.offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Codes(self.values[first:last], self.indices[first:last], self.d_sae, offsets - first)
