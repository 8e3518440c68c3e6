"""Provenance of activations: optional columns that travel with a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Provenance:
    """Named int64 columns [n] that say where each activation of a batch came from.

    A model on text gives `document`, `position` and `token`; a vision model could give `image` and
    `patch`. A source that has nothing to say gives no provenance at all.
    """

    columns: Mapping[str, Tensor]
    cluster: str | None = None
    """Column that numbers the independent units of the data, such as `document` or `image`.
    Activations of one unit are correlated, so confidence intervals resample entire units. None if
    every activation is independent."""

    def __getitem__(self, column: str) -> Tensor:
        """Return a column [n]. Raises KeyError with the columns that exist."""
        try:
            return self.columns[column]
        except KeyError:
            names = ", ".join(self.columns)
            raise KeyError(f"provenance has no column {column!r}; it has {names}") from None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    @property
    def clusters(self) -> Tensor | None:
        """The column named by `cluster`, int64 [n], or None."""
        return None if self.cluster is None else self.columns[self.cluster]

    def rows(self, index: Tensor | slice) -> Provenance:
        """Return the rows at `index`: an int64 tensor on the same device (copies) or a slice."""
        columns = {name: column[index] for name, column in self.columns.items()}
        return Provenance(columns, self.cluster)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Provenance:
        """Return the same columns on `device`."""
        columns = {
            name: column.to(device, non_blocking=non_blocking)
            for name, column in self.columns.items()
        }
        return Provenance(columns, self.cluster)

    @staticmethod
    def cat(parts: list[Provenance]) -> Provenance:
        """Return all rows of `parts`, in order; all have the columns of the first."""
        first = parts[0]
        columns = {name: torch.cat([part[name] for part in parts]) for name in first}
        return Provenance(columns, first.cluster)


TEXT_COLUMNS = ("document", "position", "token")


def text_provenance(document: Tensor, position: Tensor, token: Tensor) -> Provenance:
    """Return the provenance of activations on text.

    Args:
        document: Index of the document in the text, the same in every pass over it; int64 [n].
        position: Index of the token in its document, special tokens not counted; int64 [n].
        token: Token id; int64 [n].
    """
    columns = {"document": document, "position": position, "token": token}
    return Provenance(columns, cluster="document")
