"""From documents to rows of tokens, and the one rule for which positions count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.activations.source import Split
from sae.activations.text import Text
from sae.errors import UserError

Packing = Literal["packed", "document"]
Cursor = tuple[int, int, int]
"""Where a row starts: (pass over the text, document, offset of its first token in the document)."""
START: Cursor = (0, 0, 0)
SPECIAL = ("bos", "eos", "cls", "sep", "pad", "mask")
GROUP = 200_000
"""Characters tokenised at once: enough for the tokenizer's threads, little to throw away."""


@dataclass
class Contexts:
    """Rows of tokens as the model reads them. Every tensor is [rows, ctx] on the CPU."""

    tokens: Tensor
    """int64: token ids, padded on the right."""
    attention_mask: Tensor
    """int64: 1 on tokens, 0 on padding."""
    counts: Tensor
    """bool: the positions whose activations are used, by `PositionRule.of_tokens`."""
    document: Tensor
    """int64: index of the document the token is from."""
    position: Tensor
    """int64: index of the token in its document; -1 on tokens that are from no document."""
    start: Tensor
    """int64 [rows, 3]: the `Cursor` of each row."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def rows(self, index: slice | Tensor) -> Contexts:
        """The rows at `index`."""
        return Contexts(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def cat(parts: list[Contexts]) -> Contexts:
        """All rows of `parts`, in order."""
        names = [field.name for field in fields(Contexts)]
        return Contexts(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class PositionRule:
    """Which positions count, for training, normalisation, evaluation and report alike."""

    excluded: np.ndarray
    """bool [vocabulary]: the special tokens (BOS, EOS, CLS, SEP, PAD, MASK and added ones).

    The unknown token stands for text and counts, unless it is one of those too.
    """
    skip_first: int = 0
    """First positions of every row that do not count, its special tokens included."""
    outlier_norm: float | None = None
    """Positions whose norm exceeds this multiple of the block's median norm do not count."""

    @classmethod
    def of(cls, tokenizer: Any, **settings: Any) -> PositionRule:
        """The rule for a tokenizer's special tokens."""
        ids = {getattr(tokenizer, f"{name}_token_id") for name in SPECIAL} - {None}
        ids |= set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        excluded = np.zeros(max(len(tokenizer), max(ids, default=0) + 1), dtype=bool)
        excluded[sorted(ids)] = True
        return cls(excluded, **settings)

    def of_tokens(self, tokens: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """bool [..., ctx] for rows of tokens [..., ctx]: what is known before the model runs."""
        counts = ~self.excluded[tokens]
        counts[..., : self.skip_first] = False
        return counts if attention_mask is None else counts & (attention_mask != 0)

    def of_activations(self, acts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What only activations show, over positions [n]: (all finite, not an outlier), both bool.

        acts: hook -> [n, width]. A position is in only if it is with every hook. The outlier test
        leaves positions with NaN or infinity aside.
        """
        first = next(iter(acts.values()))
        finite = torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
        for x in acts.values():
            finite &= x.isfinite().all(dim=-1)
        inlier = torch.ones_like(finite)
        if self.outlier_norm is not None and bool(finite.any()):
            for x in acts.values():
                norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
                inlier &= ~finite | (norm <= self.outlier_norm * norm[finite].median())
        return finite, inlier


@dataclass(frozen=True)
class Layout:
    """How a row is made: prefix, text, suffix, in `context_size` tokens."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    separator: int | None
    pad: int
    context_size: int
    packing: Packing

    @classmethod
    def of(cls, tokenizer: Any, context_size: int, packing: Packing = "packed") -> Layout:
        """The layout a tokenizer implies.

        Every row gets what the tokenizer puts around a text ([CLS] ... [SEP] for BERT, BOS for
        Llama and Gemma, nothing for GPT-2). Packed documents are separated by BOS where rows begin
        with it, else by EOS, else by SEP.
        """
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        prefix, suffix = tuple(full[:at]), tuple(full[at + len(bare) :])
        bos, eos, sep = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id
        separator = bos if bos in prefix else eos if eos is not None else sep
        pad = next((x for x in (tokenizer.pad_token_id, eos, sep) if x is not None), 0)
        if context_size <= (around := len(prefix) + len(suffix)):
            raise UserError(
                f"context_size={context_size} leaves no room for text beside {around} special "
                f"tokens; give at least {around + 1}"
            )
        return cls(prefix, suffix, separator, pad, context_size, packing)

    @property
    def body(self) -> int:
        """Tokens of text in a full row."""
        return self.context_size - len(self.prefix) - len(self.suffix)

    def windows(self, ids: list[int]) -> list[np.ndarray]:
        """A document's tokens as rows, unpadded, each with prefix and suffix."""
        return [
            np.array([*self.prefix, *ids[at : at + self.body], *self.suffix])
            for at in range(0, len(ids), self.body)
        ]

    def rows(self, flat: np.ndarray, lengths: np.ndarray, rule: PositionRule) -> Contexts:
        """Rows around flat [4, n, body] = token, pass, document, position, of `lengths` [n]."""
        token, pass_, document, position = flat
        n, begin, end = len(lengths), len(self.prefix), len(self.prefix) + self.body
        stop = begin + lengths[:, None]
        column = np.arange(self.context_size)[None]
        attention_mask = (column < stop + len(self.suffix)).astype(np.int64)
        tokens = np.full((n, self.context_size), self.pad)
        tokens[:, :begin] = self.prefix
        tokens[:, begin:end] = np.where(column[:, begin:end] < stop, token, self.pad)
        for i, suffix in enumerate(self.suffix):
            np.put_along_axis(tokens, stop + i, suffix, axis=1)
        documents = np.repeat(document[:, :1], self.context_size, axis=1)
        documents[:, begin:end] = np.where(column[:, begin:end] < stop, document, document[:, :1])
        positions = np.full_like(tokens, -1)
        positions[:, begin:end] = np.where(column[:, begin:end] < stop, position, -1)
        parts = (
            tokens,
            attention_mask,
            rule.of_tokens(tokens, attention_mask),
            documents,
            positions,
            np.stack([pass_[:, 0], document[:, 0], position[:, 0]], axis=1),
        )
        return Contexts(*map(torch.from_numpy, parts))


class ContextReader:
    """Rows of one split from a cursor on: endless for "train", one pass for "held_out".

    Document n is held out if n % held_out_every is held_out_every - 1, and is then in no training
    row. Rows follow from the text, the tokenizer, the layout and the cursor alone.
    """

    def __init__(
        self,
        text: Text,
        encode: Callable[[list[str]], list[list[int]]],
        layout: Layout,
        rule: PositionRule,
        split: Split,
        held_out_every: int,
        cursor: Cursor = START,
    ) -> None:
        self.text = text
        self.encode = encode
        self.layout = layout
        self.rule = rule
        self.split = split
        self.held_out_every = held_out_every
        flats = self._packed if layout.packing == "packed" else self._per_document
        self._chunks = flats(cursor)
        self._pending: Contexts | None = None

    @property
    def cursor(self) -> Cursor | None:
        """Where the next row starts; None behind the last one."""
        return tuple(self._pending.start[0].tolist()) if self._peek() else None

    def take_rows(self, n: int) -> Contexts | None:
        """The next rows, n or (where the reader's buffer ends) fewer; None behind the last one."""
        if not self._peek():
            return None
        taken, self._pending = self._pending.rows(slice(n)), self._pending.rows(slice(n, None))
        return taken

    def take(self, size: int) -> Contexts | None:
        """Rows until they hold `size` positions that count, or to the end; None for no row."""
        taken: list[Contexts] = []
        missing = size
        while missing > 0 and self._peek():
            held = self._pending.counts.sum(dim=1).cumsum(dim=0)
            rows = int(torch.searchsorted(held, missing)) + 1
            taken.append(self.take_rows(rows))
            missing -= int(held[min(rows, len(held)) - 1])
        return Contexts.cat(taken) if taken else None

    def _peek(self) -> bool:
        if self._pending is None or len(self._pending) == 0:
            self._pending = next(self._chunks, None)
        return self._pending is not None

    def _packed(self, cursor: Cursor) -> Iterator[Contexts]:
        body = self.layout.body
        rest = np.empty((4, 0), dtype=np.int64)
        for flat in self._tokens(cursor, self.layout.separator, self._usable):
            rest = np.concatenate([rest, *flat], axis=1)
            n = rest.shape[1] // body
            if n:
                cut, rest = rest[:, : n * body].reshape(4, n, body), rest[:, n * body :]
                yield self.layout.rows(cut, np.full(n, body), self.rule)
        if rest.shape[1]:
            yield self._one_length(rest)

    def _per_document(self, cursor: Cursor) -> Iterator[Contexts]:
        body = self.layout.body

        def used(flat: np.ndarray) -> bool:
            return any(self._one_length(x).counts.any() for x in windows(flat))

        def windows(flat: np.ndarray) -> list[np.ndarray]:
            return [flat[:, at : at + body] for at in range(0, flat.shape[1], body)]

        for flats in self._tokens(cursor, None, used):
            rows = [window for flat in flats for window in windows(flat)]
            lengths = np.array([row.shape[1] for row in rows])
            cut = np.zeros((4, len(rows), body), dtype=np.int64)
            for i, row in enumerate(rows):
                cut[:, i, : row.shape[1]] = row
            if rows:
                yield self.layout.rows(cut, lengths, self.rule)

    def _one_length(self, flat: np.ndarray) -> Contexts:
        cut = np.zeros((4, 1, self.layout.body), dtype=np.int64)
        cut[:, 0, : flat.shape[1]] = flat
        return self.layout.rows(cut, np.array([flat.shape[1]]), self.rule)

    def _usable(self, flat: np.ndarray) -> bool:
        return not self.rule.excluded[flat[0]].all()

    def _tokens(
        self, cursor: Cursor, separator: int | None, usable: Callable[[np.ndarray], bool]
    ) -> Iterator[list[np.ndarray]]:
        """Groups of documents from the cursor on, each int64 [4, n] as `Layout.rows` wants them.

        Raises UserError when a whole pass holds nothing that is `usable`: no block would ever fill.
        """
        whole, found, now = cursor[1:] == (0, 0), False, cursor[0]
        for group in self._groups(cursor):
            flats = []
            for (pass_, index, _), ids in zip(
                group, self.encode([text for _, _, text in group]), strict=True
            ):
                if pass_ != now:
                    self._require(found or not whole)
                    whole, found, now = True, False, pass_
                offset = cursor[2] if (pass_, index) == cursor[:2] else 0
                tokens = [*ids, separator] if separator is not None and ids else ids
                flat = np.empty((4, len(tokens) - offset), dtype=np.int64)
                flat[0], flat[1], flat[2] = tokens[offset:], pass_, index
                flat[3] = np.arange(offset, len(tokens))
                found = found or usable(flat)
                flats.append(flat)
            yield flats
        self._require(found or not whole)

    def _require(self, found: bool) -> None:
        if not found:
            raise UserError(
                f"{self.text!r} gives no usable token in its {self.split} documents; give more text, "
                f"or lower skip_first={self.rule.skip_first}"
            )

    def _groups(self, cursor: Cursor) -> Iterator[list[tuple[int, int, str]]]:
        group: list[tuple[int, int, str]] = []
        length = 0
        for document in self._documents(cursor):
            group.append(document)
            length += len(document[2])
            if length >= GROUP or len(group) >= 256:
                yield group
                group, length = [], 0
        if group:
            yield group

    def _documents(self, cursor: Cursor) -> Iterator[tuple[int, int, str]]:
        every, (pass_, first, _) = self.held_out_every, cursor
        while True:
            for index, document in enumerate(self.text.documents(first), first):
                if (index % every == every - 1) == (self.split == "held_out"):
                    yield pass_, index, document
            if self.split == "held_out":
                return
            pass_, first = pass_ + 1, 0
