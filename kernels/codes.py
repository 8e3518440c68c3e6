"""The sparse code: what passes from encoding to decoding, losses, metrics and disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sae_kernels.pairs import Pairs


@dataclass(eq=False)
class Codes:
    """The active (token, latent, value) triples of a batch, rows contiguous.

    values [batch, k], or [nnz] when ragged; indices int64, same shape, in [0, d_sae).
    offsets: None for a fixed k, else int64 [batch + 1]; row b is values[offsets[b] : offsets[b +
    1]]. A slot with value 0 is empty: its index is valid but means nothing. Slots from offsets[-1]
    on are padding, which ragged codes of a size fixed beforehand have: empty, and of no row;
    dropped (int64, 0-d) is how many slots such a size left out, None where nothing can be. No order
    of slots within a row is promised. An encoder never puts a latent twice in one row; where a
    caller does, its values add.
    """

    values: Tensor
    indices: Tensor
    d_sae: int
    offsets: Tensor | None = None
    dropped: Tensor | None = None
    _pairs: Pairs | None = field(default=None, repr=False)

    @property
    def batch(self) -> int:
        return self.values.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    def by_latent(self) -> Pairs:
        """Where the pairs lie, by token and by latent; made at first use and kept."""
        if self._pairs is None:
            self._pairs = Pairs(self.indices, self.offsets, self.d_sae)
        return self._pairs

    def to_dense(self) -> Tensor:
        """[batch, d_sae], differentiable in `values`. For tests and metrics, never in the step."""
        where = self.by_latent().token_of_slot * self.d_sae + self.indices.flatten()
        dense = self.values.new_zeros(self.batch * self.d_sae)
        return dense.index_add(0, where, self.values.flatten()).view(self.batch, self.d_sae)

    def l0(self) -> Tensor:
        """[batch] int64: how many slots of each row hold a non-zero value."""
        active = self.values != 0
        if self.offsets is None:
            return active.sum(1)
        before = torch.nn.functional.pad(active.cumsum(0), (1, 0))
        return before[self.offsets[1:]] - before[self.offsets[:-1]]

    def fired(self) -> Tensor:
        """[d_sae] bool: which latents are non-zero on at least one token."""
        # index_put_ with one and the same value: the order of writes cannot matter. Empty slots are
        # sent to an extra latent instead of being filtered, which would wait for the device.
        hits = torch.zeros(self.d_sae + 1, dtype=torch.bool, device=self.values.device)
        latents = torch.where(self.values != 0, self.indices, self.d_sae)
        return hits.index_fill_(0, latents.flatten(), True)[:-1]

    def detach(self) -> Codes:
        """The same codes without a graph; the transposition stays shared."""
        return replace(self, values=self.values.detach(), _pairs=self.by_latent())

    def rows(self, rows: slice) -> Codes:
        """The codes of a contiguous run of tokens. On ragged codes it waits for the device."""
        start, stop, step = rows.indices(self.batch)
        assert step == 1, "rows must be contiguous"
        stop = max(start, stop)
        if self.offsets is None:
            return Codes(self.values[start:stop], self.indices[start:stop], self.d_sae)
        offsets = self.offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Codes(self.values[first:last], self.indices[first:last], self.d_sae, offsets - first)
