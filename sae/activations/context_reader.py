"""From documents to rows of tokens, starting anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from sae.activations.source import Split
from sae.activations.text import Text
from sae.activations.tokens import Contexts, Cursor, Layout, PositionRule
from sae.errors import UserError

START: Cursor = (0, 0, 0)
GROUP = 200_000
"""Characters tokenised at once: enough for the tokenizer's threads, little to throw away."""


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
            held = self._pending.position_mask.sum(dim=1).cumsum(dim=0)
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
            return any(self._one_length(x).position_mask.any() for x in windows(flat))

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
                f"{self.text!r} gives no usable token in its {self.split} documents; give more "
                f"text, or lower skip_first={self.rule.skip_first}"
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
