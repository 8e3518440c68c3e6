"""Text from a list of documents in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from sae.activations.text import Text
from sae.errors import UserError


class ListText(Text):
    """A list of documents.

    Args:
        documents: The documents, in their order.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self._documents = list(documents)
        if not self._documents:
            raise UserError("text=[] holds no document; give at least two")

    def __repr__(self) -> str:
        return f"text=<{len(self._documents)} documents>"

    def documents(self, start: int = 0) -> Iterator[str]:
        yield from self._documents[start:]

    def fingerprint(self) -> str:
        digest = hashlib.sha256("\0".join(self._documents).encode()).hexdigest()
        return f"ListText {digest[:16]}"
