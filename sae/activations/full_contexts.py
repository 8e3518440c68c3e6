"""Batches of full contexts, on which the model can run again with activations replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sae.activations.batch import Batch
from sae.activations.model import ActivationModel
from sae.activations.provenance import text_provenance
from sae.activations.tokens import Contexts, PositionRule


class FullContextSource(Protocol):
    """A source that can give whole contexts and run its model on them."""

    def train_contexts(self, index: int, size: int) -> Contexts:
        """Return the contexts of a "train" block; they may use more than `size` positions."""
        ...

    def run_model(self, contexts: Contexts, block: int, share: int) -> Batch:
        """Run the model on contexts; return the batch of their positions, with its `model_pass`."""
        ...


class FullContextBatches:
    """The "train" blocks of a source, each split into `block_batches` batches of full contexts.

    Args:
        source: A model with a next-token head, on text.
        batch_size: Mean number of positions in a batch; at least as many as a context has.
        block_batches: Batches per block.
    """

    def __init__(self, source: FullContextSource, batch_size: int, block_batches: int) -> None:
        self.source = source
        self.batch_size, self.block_batches = batch_size, block_batches
        self._block: int | None = None
        self._shares: list[Contexts] = []

    def batch(self, block: int, share: int, generator: torch.Generator) -> Batch:
        """Return one share of a block; the order of its contexts is drawn from `generator`."""
        if block != self._block:
            contexts = self.source.train_contexts(block, self.batch_size * self.block_batches)
            self._shares = split_contexts(contexts, self.batch_size, self.block_batches, generator)
            self._block = block
        return self.source.run_model(self._shares[share], block, share)


def split_contexts(
    contexts: Contexts, size: int, parts: int, generator: torch.Generator
) -> list[Contexts]:
    """Shuffle contexts and split them into `parts`.

    Part i has the contexts that start after at least i * size and fewer than (i + 1) * size used
    positions; the last part has all that are left. No part is empty if no context uses more than
    `size` positions and all together use at least parts * size.
    """
    contexts = contexts.rows(torch.randperm(len(contexts), generator=generator))
    used = contexts.position_mask.sum(dim=1)
    part = ((used.cumsum(0) - used) // size).clamp(max=parts - 1)
    sizes = torch.bincount(part, minlength=parts).tolist()
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [contexts.rows(slice(*ends[i : i + 2])) for i in range(parts)]


@dataclass
class FullContextPass:
    """A forward pass of the model on some contexts, which can be repeated with other activations.

    Shapes: n positions used, m positions that predict a token.
    """

    model: ActivationModel
    tokens: Tensor
    """int64 [rows, ctx]."""
    attention_mask: Tensor
    """int64 [rows, ctx]."""
    where: tuple[Tensor, Tensor]
    """(row, column) of the positions used, int64 [n] each."""
    acts: dict[str, Tensor]
    """Hook -> activations at the positions used, [n, width]."""
    predicts: tuple[Tensor, Tensor]
    """(row, column) of the positions with real text as next token, int64 [m] each."""
    targets: Tensor
    """The next tokens, int64 [m]."""
    logits: Tensor
    """Logits at the positions that predict, [m, vocab]."""

    @classmethod
    def first_pass(
        cls, model: ActivationModel, rule: PositionRule, contexts: Contexts
    ) -> tuple[Batch, Tensor, Tensor]:
        """Run the model on contexts, with nothing replaced.

        Returns:
            The batch of all positions used, with its `model_pass`; and for each position that the
            rule on tokens lets through, whether it is used and whether it is finite, bool [n] each.
        """
        device = model.device
        longest = int(contexts.attention_mask.sum(dim=1).max())
        tokens, mask, used, document, position = (
            x[:, :longest]
            for x in (
                contexts.tokens,
                contexts.attention_mask,
                contexts.position_mask,
                contexts.document,
                contexts.position,
            )
        )
        row, column = used.nonzero(as_tuple=True)
        where = row.to(device), column.to(device)
        acts: dict[str, Tensor] = {}
        record = {hook: partial(_record, acts, hook) for hook in model.hooks}
        output = model.outputs(tokens, mask, record, where)
        finite, inlier = rule.activation_masks(acts)
        good = finite & inlier
        columns = (x[row, column].to(device) for x in (document, position, tokens))
        provenance = text_provenance(*columns)
        batch = Batch({hook: acts[hook] for hook in model.hooks}, provenance)
        if not bool(good.all()):
            rows = good.nonzero().squeeze(1)
            batch, where = batch.rows(rows), (where[0][rows], where[1][rows])
        (row, column), targets = rule.next_tokens(tokens, mask)
        predicts = row.to(device), column.to(device)
        assert output.logits is not None, "full contexts need a model with a next-token head"
        batch.model_pass = cls(
            model,
            tokens,
            mask,
            where,
            batch.acts,
            predicts,
            targets.to(device),
            output.logits[predicts],
        )
        return batch, good, finite

    def __call__(self, predictions: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the model again with predictions in place of the activations at the positions used.

        Args:
            predictions: Hook -> [n, width].

        Returns:
            The new logits [m, vocab], and the new activations of the hooks that are not predicted
            but run after one that is. Both are differentiable in the predictions.
        """
        changed_acts: dict[str, Tensor] = {}
        replaced_any = False

        def swap(hook: str, x: Tensor) -> Tensor | None:
            nonlocal replaced_any
            if hook in predictions:
                replaced_any = True
                return predictions[hook]
            if replaced_any:
                changed_acts.setdefault(hook, x)
            return None

        replace = {hook: partial(swap, hook) for hook in self.model.hooks}
        output = self.model.outputs(
            self.tokens, self.attention_mask, replace, self.where, grad=True
        )
        assert output.logits is not None
        return output.logits[self.predicts], changed_acts


def _record(acts: dict[str, Tensor], hook: str, x: Tensor) -> None:
    acts.setdefault(hook, x)
