"""The table behind `top_examples`: the n strongest contexts of every latent, batch by batch.

Shapes: L latents, n examples each, W = 2 * window + 1 tokens; c candidates in a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_kernels.codes import Codes

if TYPE_CHECKING:
    from sae.activations import Contexts

_SAME_TOKENS = 8  # examples that agree on this many tokens up to the peak count as repeats
_OUTSIDE = -1  # token id of positions outside the document
_FIELDS = ("tokens", "value", "acts", "document", "position")


class TopTable:
    """The n strongest examples of each of `latents` [L], with their windows."""

    def __init__(self, latents: Tensor, d_sae: int, n: int, window: int) -> None:
        L, W, device = len(latents), 2 * window + 1, latents.device
        self.n, self.window = n, window
        self.slot_of = torch.full((d_sae,), -1, device=device)
        self.slot_of[latents] = torch.arange(L, device=device)
        # Each field describes the example at [slot, rank]; value 0 marks an empty place.
        self.fields = {
            "value": torch.zeros(L, n, device=device),
            "same": torch.zeros(L, n, dtype=torch.int64, device=device),
            "document": torch.zeros(L, n, dtype=torch.int64, device=device),
            "position": torch.zeros(L, n, dtype=torch.int64, device=device),
            "tokens": torch.full((L, n, W), _OUTSIDE, dtype=torch.int32, device=device),
            "acts": torch.zeros(L, n, W, device=device),
        }

    def update(self, codes: Codes, place: Tensor, contexts: Contexts) -> None:
        """Merge a batch; row i of `codes` is at place[i] = row * ctx + column of `contexts`."""
        rows, ctx = contexts.tokens.shape
        if codes.offsets is None:
            place = place.repeat_interleave(codes.values.shape[1])
        else:
            place = place.repeat_interleave(codes.offsets.diff())
        slot, value = self.slot_of[codes.indices.flatten()], codes.values.flatten().float()
        fires = (slot >= 0) & (value > 0)
        slot, value, place = slot[fires], value[fires], place[fires]

        # Sorted by (slot, place), so that the entries of a latent in a context are adjacent and any
        # (slot, place) can be looked up by bisection.
        key, order = (slot * (rows * ctx) + place).sort()
        value = value[order]
        group = key // ctx  # (slot, row)
        best = _first_of_each(group, value)
        slot = key[best] // (rows * ctx)
        strong = value[best] > self.fields["value"][slot, -1]
        best, slot = best[strong], slot[strong]
        if len(best) == 0:
            return
        new = self._windows(key, value, best, contexts)
        self._merge(slot, new)

    def _windows(
        self, key: Tensor, value: Tensor, best: Tensor, contexts: Contexts
    ) -> dict[str, Tensor]:
        """Return the fields of the candidates at `best` [c] of the sorted entries."""
        device = key.device
        rows, ctx = contexts.tokens.shape
        row, column = key[best] // ctx % rows, key[best] % ctx
        around = torch.arange(-self.window, self.window + 1, device=device)
        columns = column[:, None] + around  # [c, W]
        inside = (columns >= 0) & (columns < ctx)
        columns = columns.clamp(0, ctx - 1)
        document = contexts.document.to(device)
        inside &= document[row[:, None], columns] == document[row, column][:, None]
        inside &= contexts.attention_mask.to(device)[row[:, None], columns] != 0
        tokens = contexts.tokens.to(device)[row[:, None], columns].masked_fill(~inside, _OUTSIDE)
        lookup = (key[best] - column)[:, None] + columns
        entry = torch.searchsorted(key, lookup).clamp_max(len(key) - 1)
        hit = inside & (key[entry] == lookup)
        # A polynomial hash of the tokens up to the peak; overflow of int64 does no harm.
        same = torch.zeros_like(row)
        for offset in range(max(0, self.window + 1 - _SAME_TOKENS), self.window + 1):
            same = same * 1_000_003 + tokens[:, offset]
        return {
            "value": value[best],
            "same": same,
            "document": document[row, column],
            "position": contexts.position.to(device)[row, column],
            "tokens": tokens.int(),
            "acts": torch.where(hit, value[entry], 0.0),
        }

    def _merge(self, slot: Tensor, new: dict[str, Tensor]) -> None:
        """Merge candidates into their slots; keep the n strongest distinct ones, in order."""
        touched = slot.unique()
        slot = torch.cat([touched.repeat_interleave(self.n), slot])
        fields = {
            name: torch.cat([old[touched].flatten(0, 1), new[name]])
            for name, old in self.fields.items()
        }
        # Remove repeated text: of one (slot, same) the strongest stays, the older one on a tie.
        pair = torch.stack([slot, fields["same"]], 1).unique(dim=0, return_inverse=True)[1]
        by_pair = pair.argsort(stable=True)
        order = by_pair[_first_of_each(pair[by_pair], fields["value"][by_pair])]
        order = order[fields["value"][order] > 0]
        order = order[fields["value"][order].argsort(descending=True, stable=True)]
        order = order[slot[order].argsort(stable=True)]
        slot = slot[order]
        rank = torch.arange(len(order), device=slot.device) - torch.searchsorted(slot, slot)
        order, slot, rank = (t[rank < self.n] for t in (order, slot, rank))
        for name, table in self.fields.items():
            table[slot, rank] = fields[name][order]

    def rows(self) -> list[list[tuple[list[int], float, list[float], int, int]]]:
        """Return each latent's (tokens, value, activations, document, position), best first."""
        fields = {name: t.cpu() for name, t in self.fields.items()}
        rows = []
        for i, held in enumerate((fields["value"] > 0).sum(1).tolist()):
            columns = [fields[name][i, :held].tolist() for name in _FIELDS]
            examples = []
            for tokens, value, acts, document, position in zip(*columns, strict=True):
                inside = [j for j, token in enumerate(tokens) if token != _OUTSIDE]
                tokens, acts = [tokens[j] for j in inside], [acts[j] for j in inside]
                examples.append((tokens, value, acts, document, position))
            rows.append(examples)
        return rows


def _first_of_each(group: Tensor, value: Tensor) -> Tensor:
    """Return the index of the largest value in each run of sorted `group`; the first on a tie."""
    _, run, sizes = group.unique_consecutive(return_inverse=True, return_counts=True)
    top = torch.zeros(len(sizes), dtype=value.dtype, device=value.device)
    top.scatter_reduce_(0, run, value, "amax", include_self=False)
    at_top = (value == top[run]).nonzero().squeeze(1)
    first = torch.searchsorted(run[at_top], torch.arange(len(sizes), device=value.device))
    return at_top[first]
