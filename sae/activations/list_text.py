"""Text from a list of documents in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from sae.activations.text import Text
from sae.configurable import NotNameable
from sae.errors import UserError

MOST_CHARACTERS = 100_000
"""The most that a config file repeats; a run on more text is resumed from Python."""


class ListText(Text):
    """A list of documents.

    Args:
        documents: The documents, in their order.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self._documents = list(documents)
        if not self._documents:
            raise UserError("text=[] holds no document; give at least two")

    def init_args(self) -> dict[str, Any]:
        if sum(map(len, self._documents)) > MOST_CHARACTERS:
            raise NotNameable(f"more than {MOST_CHARACTERS:,} characters of text")
        return super().init_args()

    def __repr__(self) -> str:
        return f"text=<{len(self._documents)} documents>"

    def documents(self, start: int = 0) -> Iterator[str]:
        yield from self._documents[start:]

    def fingerprint(self) -> str:
        digest = hashlib.sha256("\0".join(self._documents).encode()).hexdigest()
        return f"ListText {digest[:16]}"
