"""Batches of whole contexts, on which the model can run again with other activations in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.activations.model import ActivationModel
from sae.activations.provenance import text_provenance
from sae.activations.source import Batch
from sae.activations.tokens import Contexts, PositionRule

if TYPE_CHECKING:
    from sae.activations.model_activations import ModelActivations


class FullContextBatches:
    """The "train" blocks of a source, each shared out in `block_batches` batches of contexts.

    Args:
        source: a model with a next-token head, on text.
        batch_size: positions of a batch, on average; at least as many as a context has.
        block_batches: batches of a block.
    """

    def __init__(self, source: ModelActivations, batch_size: int, block_batches: int) -> None:
        self.source = source
        self.batch_size, self.block_batches = batch_size, block_batches
        self._block: int | None = None
        self._shares: list[Contexts] = []

    def batch(self, block: int, share: int, generator: torch.Generator) -> Batch:
        """One share of a block whose contexts are in an order drawn from `generator`."""
        if block != self._block:
            contexts = self.source.train_contexts(block, self.batch_size * self.block_batches)
            self._shares = split_contexts(contexts, self.batch_size, self.block_batches, generator)
            self._block = block
        return self.source.run(self._shares[share], block, share)


def split_contexts(
    contexts: Contexts, size: int, parts: int, generator: torch.Generator
) -> list[Contexts]:
    """`contexts`, shuffled, in `parts`: part i has those that begin behind i * size to (i + 1) *
    size positions that count, and the last part all that is left.

    None is empty where no context has more than `size` positions and all have parts * size.
    """
    contexts = contexts.rows(torch.randperm(len(contexts), generator=generator))
    counted = contexts.position_mask.sum(dim=1)
    part = ((counted.cumsum(0) - counted) // size).clamp(max=parts - 1)
    sizes = torch.bincount(part, minlength=parts).tolist()
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [contexts.rows(slice(*ends[i : i + 2])) for i in range(parts)]


@dataclass
class ModelRun:
    """What the model made of some contexts, and how to run it on them again."""

    model: ActivationModel
    tokens: Tensor
    """int64 [rows, ctx]."""
    attention_mask: Tensor
    """int64 [rows, ctx]."""
    where: tuple[Tensor, Tensor]
    """(row, column) of the positions that count, int64 [n] each."""
    acts: dict[str, Tensor]
    """Hook -> [n, width] there."""
    predicts: tuple[Tensor, Tensor]
    """(row, column) of the positions whose next token is real text, int64 [m] each."""
    targets: Tensor
    """int64 [m]: those next tokens."""
    logits: Tensor
    """[m, vocab] there."""

    @classmethod
    def clean(
        cls, model: ActivationModel, rule: PositionRule, contexts: Contexts
    ) -> tuple[Batch, Tensor, Tensor]:
        """The batch of all positions that count, with its run; and of those that do by their tokens
        alone whether they do, and whether they are finite, bool [n] both."""
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
        at = used.nonzero(as_tuple=True)
        where = tuple(x.to(device) for x in at)
        acts: dict[str, Tensor] = {}
        look = {hook: partial(_keep, acts, hook) for hook in model.hooks}
        output = model.outputs(tokens, mask, look, where)
        finite, inlier = rule.activation_masks(acts)
        good = finite & inlier
        provenance = text_provenance(*(x[at].to(device) for x in (document, position, tokens)))
        batch = Batch({hook: acts[hook] for hook in model.hooks}, provenance)
        if not bool(good.all()):
            kept = good.nonzero().squeeze(1)
            batch, where = batch.rows(kept), tuple(x[kept] for x in where)
        predicts, targets = rule.next_tokens(tokens, mask)
        predicts = tuple(x.to(device) for x in predicts)
        batch.run = cls(
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
        """Run the model with predictions {hook: [n, width]} in place where positions count.

        Gives `logits` and, of hooks that are not predicted and run behind one that is, `acts`, as
        they then are; both differentiable in the predictions.
        """
        behind: dict[str, Tensor] = {}
        begun = False

        def swap(hook: str, x: Tensor) -> Tensor | None:
            nonlocal begun
            if hook in predictions:
                begun = True
                return predictions[hook]
            if begun:
                behind.setdefault(hook, x)
            return None

        replace = {hook: partial(swap, hook) for hook in self.model.hooks}
        output = self.model.outputs(
            self.tokens, self.attention_mask, replace, self.where, grad=True
        )
        return output.logits[self.predicts], behind


def _keep(acts: dict[str, Tensor], hook: str, x: Tensor) -> None:
    acts.setdefault(hook, x)
