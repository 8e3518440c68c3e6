"""A source that runs a model on text, in blocks that depend on the tokens only."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch

from sae.activations.batch import Batch, PositionCounts, Split
from sae.activations.capabilities import TextModel
from sae.activations.context_reader import START, ContextReader
from sae.activations.full_contexts import FullContextBatches, FullContextPass
from sae.activations.gather import gather, replace_bad_rows
from sae.activations.loading import Attention, DType
from sae.activations.model import ActivationModel
from sae.activations.provenance import TEXT_COLUMNS, text_provenance
from sae.activations.source import Source
from sae.activations.text import Text
from sae.activations.tokens import Contexts, Cursor, Layout, Packing, PositionRule
from sae.errors import UserError
from sae.progress import progress

MOST_NON_FINITE = 0.01
"""Largest share of a block that may be NaN or infinite; beyond it the run stops."""


class ModelActivations(Source):
    """Activations of some modules of a frozen transformer on a text.

    A block takes contexts until the positions used (see `PositionRule`) reach its size. The next
    block starts with the next context, and positions of the last context beyond the size are left
    out (`counts.tail`). The start of a block therefore depends on the tokens only, and any block
    can be reached without running the model on the blocks before it.

    A position whose activation is not finite, or is an outlier, is left out after the model ran. In
    "train" it is replaced by another row of the block, chosen evenly spread, so that blocks keep
    their size. In "held_out" the block gets shorter, so that nothing is measured twice.

    Args:
        model: Hub id, local folder, or `pypi:<distribution>`.
        hooks: Modules to read: full names, or short ones such as `layers.3` or `layers.3.mlp`. The
            output of a module is read, or its input if the name ends with `.in`.
        text: The documents.
        context_size: Tokens of a context, special tokens included.
        packing: "packed" joins documents and cuts contexts of full length; "document" starts a
            context with each document, cuts long documents, and pads.
        dtype: The dtype that the model computes in, and of the activations.
        attention: "sdpa" is faster; some models need "eager".
        model_batch_size: Contexts in one forward pass.
        held_out_every: One document in this many is held out and never trained on.
        skip_first: Number of positions left out at the start of every context.
        outlier_norm: Leave out positions whose norm exceeds this multiple of the block's median.
        random_weights: A seed: the model's weights are drawn as before training instead of read.
            This is a baseline: features found in it were not learned by the model.

    Raises:
        UserError: A setting is out of range.
    """

    provenance_columns = TEXT_COLUMNS

    def __init__(
        self,
        model: str | Path,
        hooks: list[str],
        text: Text,
        context_size: int = 128,
        packing: Packing = "packed",
        dtype: DType = "float32",
        attention: Attention = "sdpa",
        model_batch_size: int = 16,
        held_out_every: int = 20,
        skip_first: int = 0,
        outlier_norm: float | None = None,
        random_weights: int | None = None,
    ) -> None:
        self.model_name = str(model)
        self.hooks = list(hooks)
        self.text = text
        self.context_size = context_size
        self.packing: Packing = packing
        self.dtype: DType = dtype
        self.attention: Attention = attention
        self.model_batch_size = model_batch_size
        self.held_out_every = held_out_every
        self.skip_first = skip_first
        self.outlier_norm = outlier_norm
        self.random_weights = random_weights
        if not hooks:
            raise UserError("source.hooks=[] reads nothing; name at least one module")
        if len(set(hooks)) < len(hooks):
            raise UserError(f"source.hooks={self.hooks} names a module twice; remove one")
        for name, least in (("context_size", 2), ("model_batch_size", 1), ("held_out_every", 2)):
            if getattr(self, name) < least:
                raise UserError(
                    f"source.{name}={getattr(self, name)} is too small; give at least {least}"
                )
        if not 0 <= skip_first < context_size - 1:
            raise UserError(
                f"source.skip_first={skip_first} must be at least 0 and leave room in "
                f"context_size={context_size}"
            )
        if outlier_norm is not None and outlier_norm <= 1:
            raise UserError(
                f"source.outlier_norm={outlier_norm} would leave out half the positions or more; "
                "give a multiple above 1, such as 10, or null"
            )
        self._model: ActivationModel | None = None

    def setup(self, device: torch.device | str = "cpu") -> None:
        """Check the text, then load the model onto `device`. A second call does nothing.

        Raises:
            UserError: The text, the model or a hook does not exist, or `context_size` is too large
                for the model.
        """
        if self._model is not None:
            return
        with progress("reading the text"):
            self.text.check(self.held_out_every)
        with progress(f"loading model {self.model_name}"):
            model = ActivationModel.load(
                self.model_name,
                self.hooks,
                dtype=self.dtype,
                device=device,
                attention=self.attention,
                random_weights=self.random_weights,
            )
        if self.context_size > model.max_context:
            raise UserError(
                f"source.context_size={self.context_size} exceeds the {model.max_context} tokens "
                f"that {self.model_name} reads; lower it"
            )
        self.layout = Layout.from_tokenizer(model.tokenizer, self.context_size, self.packing)
        self.rule = PositionRule.from_tokenizer(
            model.tokenizer, skip_first=self.skip_first, outlier_norm=self.outlier_norm
        )
        self.widths = dict(model.widths)
        self._model = model
        self._text_fingerprint = self.text.fingerprint()
        self._lock = threading.Lock()
        self._readers: dict[str, ContextReader] = {}
        self._starts: dict[tuple[str, int], dict[int, Cursor | None]] = {}
        self._counts: dict[Any, PositionCounts] = {}

    @property
    def model(self) -> ActivationModel:
        """The frozen model."""
        assert self._model is not None, "call setup() first"
        return self._model

    @property
    def activation_dtype(self) -> torch.dtype:
        return self.model.dtype

    def text_model(self) -> TextModel:
        return self

    def random_weights_twin(self, seed: int = 0) -> ModelActivations:
        """Return this source, not set up, with random weights in its model."""
        other = copy.copy(self)
        other._model, other.random_weights = None, seed
        return other

    def metadata(self) -> dict[str, Any]:
        """Return plain data about the activations, to save with what is trained on them."""
        return {
            "model": self.model_name,
            "hooks": self.hooks,
            "modules": dict(self._model.modules) if self._model else {},
            "context_size": self.context_size,
            "packing": self.packing,
            "dtype": self.dtype,
            "skip_first": self.skip_first,
            "outlier_norm": self.outlier_norm,
            "random_weights": self.random_weights,
            "text": repr(self.text),
        }

    @property
    def counts(self) -> PositionCounts:
        return reduce(add, list(self._counts.values()), PositionCounts())  # a copy: see `hints`

    def contexts(self, split: Split, rows: int | None = None) -> Iterator[Contexts]:
        """Yield the contexts of a split from its start.

        "held_out" ends after one pass; "train" does not end.

        Args:
            split: "train" or "held_out".
            rows: Most contexts at a time; `model_batch_size` by default.
        """
        reader = self._reader(split, START)
        while (contexts := reader.take_rows(rows or self.model_batch_size)) is not None:
            yield contexts

    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        """Return a block as `Source.block` says; it does not depend on `seed`.

        Raises:
            UserError: The text has no usable token, or more than 1% of the block is not finite.
        """
        with self._lock:
            contexts = self._contexts_of(split, index, size)
            if contexts is None:
                return self._empty()
            batch, counts = self._harvest(contexts, split, index, size)
            if split == "train":
                self._counts[index] = counts
            return batch

    def full_contexts(self, batch_size: int, block_batches: int) -> FullContextBatches:
        if not self.model.has_head:
            raise UserError(
                f"model.losses has a term that runs a language model, and {self.model_name} "
                "predicts no tokens; use a model with a next-token head"
            )
        if batch_size < self.layout.body:
            raise UserError(
                f"data.batch_size={batch_size} is less than the {self.layout.body} tokens of a "
                "context, and model.losses needs full contexts; raise it, or lower context_size"
            )
        return FullContextBatches(self, batch_size, block_batches)

    def train_contexts(self, index: int, size: int) -> Contexts:
        """Return the contexts of a "train" block; they may use more than `size` positions."""
        with self._lock:
            contexts = self._contexts_of("train", index, size)
            assert contexts is not None, "the train split does not end"
            kept = int(contexts.position_mask.sum())
            self._counts[index] = PositionCounts(
                kept=kept,
                skipped=contexts.position_mask.numel() - kept,
                passes=int(contexts.start[-1, 0]) + 1,
            )
            return contexts

    def run_model(self, contexts: Contexts, block: int, share: int) -> Batch:
        """Run the full model on a share of a block.

        Returns the activations of all positions used, and `Batch.model_pass`. Outliers are found by
        the median norm of the share.
        """
        batch, good, finite = FullContextPass.first_pass(self.model, self.rule, contexts)
        if len(batch) < len(good):
            broken = len(good) - int(finite.sum())
            self._refuse_broken(broken, len(good), "train", block)
            left_out = len(good) - len(batch)
            self._counts[block, share] = PositionCounts(
                kept=-left_out, non_finite=broken, outliers=left_out - broken
            )
        return batch

    # Hints are [fingerprint, [block, pass, document, offset], ...] of the last four blocks reached,
    # because an overlapping stream is up to two blocks ahead of the block it hands out.
    def hints(self, split: Split, size: int) -> list[Any]:
        starts = dict(self._starts.get((split, size), {}))  # a thread may be adding to it
        known = [(i, start) for i, start in sorted(starts.items())[-4:] if start is not None]
        last = [[i, *start] for i, start in known]
        return [self._fingerprint(split, size), *last]

    def use_hints(self, split: Split, size: int, hints: Sequence[Any]) -> None:
        if not hints or hints[0] != self._fingerprint(split, size):
            return  # from another text or layout, where blocks start elsewhere
        starts = self._starts.setdefault((split, size), {0: START})
        starts.update({i: (pass_, document, offset) for i, pass_, document, offset in hints[1:]})

    def _fingerprint(self, split: Split, size: int) -> str:
        settings = (
            self._text_fingerprint,
            self.model_name,
            len(self.model.tokenizer),
            self.layout,
            self.skip_first,
            self.held_out_every,
            split,
            size,
        )
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def _reader(self, split: Split, cursor: Cursor) -> ContextReader:
        return ContextReader(
            self.text,
            self.model.encode,
            self.layout,
            self.rule,
            split,
            self.held_out_every,
            cursor,
        )

    def _contexts_of(self, split: Split, index: int, size: int) -> Contexts | None:
        """Return the contexts of a block, or None after the last block of "held_out".

        Tokens are read from the nearest known start at or before the block.
        """
        starts = self._starts.setdefault((split, size), {0: START})
        current = max(i for i in starts if i <= index)
        while True:
            if (cursor := starts[current]) is None:
                return None
            reader = self._readers.pop(split, None)
            if reader is None or reader.cursor != cursor:
                reader = self._reader(split, cursor)
            contexts = reader.take(size)
            starts[current + 1] = reader.cursor
            self._readers[split] = reader
            if current == index:
                return contexts
            current += 1

    def _harvest(
        self, contexts: Contexts, split: Split, index: int, size: int
    ) -> tuple[Batch, PositionCounts]:
        usable = contexts.position_mask.flatten().nonzero().squeeze(1)
        places = usable[:size]
        n = len(places)
        destination = torch.full((contexts.position_mask.numel(),), -1)
        destination[places] = torch.arange(n)
        destination = destination.view_as(contexts.tokens)
        acts = gather(self.model, contexts, destination, n, self.model_batch_size)
        finite, inlier = self.rule.activation_masks(acts)
        columns = (contexts.document, contexts.position, contexts.tokens)
        document, position, token = (x.flatten()[places].to(self.model.device) for x in columns)
        batch = Batch(acts, text_provenance(document, position, token))
        counts = PositionCounts(
            kept=n,
            skipped=contexts.position_mask.numel() - len(usable),
            tail=len(usable) - n,
            passes=int(contexts.start[-1, 0]) + 1,
        )
        good = finite & inlier
        if not bool(good.all()):
            counts.non_finite = n - int(finite.sum())
            counts.outliers = int((finite & ~inlier).sum())
            self._refuse_broken(counts.non_finite, n, split, index)
            batch = batch.rows(
                replace_bad_rows(good) if split == "train" else good.nonzero().squeeze(1)
            )
            counts.kept = len(batch)
        return batch, counts

    def _refuse_broken(self, broken: int, n: int, split: Split, index: int) -> None:
        if broken > MOST_NON_FINITE * n:
            remedy = "set dtype: float32" if self.dtype != "float32" else "check the model"
            raise UserError(
                f"{broken} of {n} activations in {split} block {index} of {self.model_name} "
                f"({self.dtype}) are NaN or infinite, more than 1%; {remedy}"
            )

    def _empty(self) -> Batch:
        dtype, device = self.model.dtype, self.model.device
        acts = {
            hook: torch.empty(0, width, dtype=dtype, device=device)
            for hook, width in self.widths.items()
        }
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return Batch(acts, text_provenance(empty, empty, empty))
