"""Reads documents into contexts (rows of tokens), starting anywhere in the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from sae.activations.batch import Split
from sae.activations.text import Text
from sae.activations.tokens import Contexts, Cursor, Layout, PositionRule
from sae.errors import UserError

START: Cursor = (0, 0, 0)
GROUP_CHARACTERS = 200_000
"""Characters tokenised at once: enough for the tokenizer's threads, with little to throw away."""
GROUP_DOCUMENTS = 256
"""Most documents tokenised at once."""


class ContextReader:
    """Reads the contexts of one split from a cursor on.

    "train" is endless; "held_out" ends after one pass. Document n is held out if
    n % held_out_every == held_out_every - 1, and then never appears in "train". The contexts depend
    only on the text, the tokenizer, the layout and the cursor.
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
        read = self._packed if layout.packing == "packed" else self._per_document
        self._chunks = read(cursor)
        self._pending: Contexts | None = None

    @property
    def cursor(self) -> Cursor | None:
        """The start of the next context, or None after the last one."""
        pending = self._peek()
        if pending is None:
            return None
        pass_, document, offset = pending.start[0].tolist()
        return pass_, document, offset

    def take_rows(self, n: int) -> Contexts | None:
        """Return the next n contexts, or fewer at the end of the buffer; None after the last."""
        pending = self._peek()
        if pending is None:
            return None
        self._pending = pending.rows(slice(n, None))
        return pending.rows(slice(n))

    def take(self, size: int) -> Contexts | None:
        """Return contexts until `size` of their positions are used, or the text ends.

        Returns None if there is no context left.
        """
        taken: list[Contexts] = []
        missing = size
        while missing > 0 and (pending := self._peek()) is not None:
            used = pending.position_mask.sum(dim=1).cumsum(dim=0)
            rows = int(torch.searchsorted(used, missing)) + 1
            taken.append(pending.rows(slice(rows)))
            self._pending = pending.rows(slice(rows, None))
            missing -= int(used[min(rows, len(used)) - 1])
        return Contexts.cat(taken) if taken else None

    def _peek(self) -> Contexts | None:
        """Return the contexts in the buffer, refilled if it is empty; None after the last one."""
        if self._pending is None or len(self._pending) == 0:
            self._pending = next(self._chunks, None)
        return self._pending

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

        def usable(flat: np.ndarray) -> bool:
            return any(bool(self._one_length(x).position_mask.any()) for x in windows(flat))

        def windows(flat: np.ndarray) -> list[np.ndarray]:
            return [flat[:, start : start + body] for start in range(0, flat.shape[1], body)]

        for flats in self._tokens(cursor, None, usable):
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
        """Yield groups of documents from the cursor on, each int64 [4, n] (see `Layout.rows`).

        Raises UserError if a full pass has no `usable` document, because no block would ever fill.
        """
        full_pass, any_usable, current_pass = cursor[1:] == (0, 0), False, cursor[0]
        for group in self._groups(cursor):
            flats = []
            for (pass_, index, _), ids in zip(
                group, self.encode([text for _, _, text in group]), strict=True
            ):
                if pass_ != current_pass:
                    self._require(any_usable or not full_pass)
                    full_pass, any_usable, current_pass = True, False, pass_
                offset = cursor[2] if (pass_, index) == cursor[:2] else 0
                tokens = [*ids, separator] if separator is not None and ids else ids
                flat = np.empty((4, len(tokens) - offset), dtype=np.int64)
                flat[0], flat[1], flat[2] = tokens[offset:], pass_, index
                flat[3] = np.arange(offset, len(tokens))
                any_usable = any_usable or usable(flat)
                flats.append(flat)
            yield flats
        self._require(any_usable or not full_pass)

    def _require(self, any_usable: bool) -> None:
        if not any_usable:
            raise UserError(
                f"{self.text!r} has no usable token in its {self.split} documents; give more "
                f"text, or lower skip_first={self.rule.skip_first}"
            )

    def _groups(self, cursor: Cursor) -> Iterator[list[tuple[int, int, str]]]:
        group: list[tuple[int, int, str]] = []
        length = 0
        for document in self._documents(cursor):
            group.append(document)
            length += len(document[2])
            if length >= GROUP_CHARACTERS or len(group) >= GROUP_DOCUMENTS:
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
