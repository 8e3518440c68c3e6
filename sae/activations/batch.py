"""A batch of activations, and the counts of the positions it was taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sae.activations.provenance import Provenance

Split = Literal["train", "held_out"]


class ModelPass(Protocol):
    """The forward pass of a model that gave a batch, which can be repeated with other activations.

    Shapes: n rows of the batch, m positions that predict a token.
    """

    @property
    def acts(self) -> Mapping[str, Tensor]:
        """Hook -> activations at the positions used, [n, width]."""
        ...

    @property
    def targets(self) -> Tensor:
        """The next tokens, int64 [m]."""
        ...

    @property
    def logits(self) -> Tensor:
        """Logits at the positions that predict, [m, vocab]."""
        ...

    def __call__(self, predictions: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and later activations with `predictions` in place of activations."""
        ...


@dataclass
class Batch:
    """Activations by hook, with the place each came from where the source knows it.

    Row i of every tensor is the same position.
    """

    acts: dict[str, Tensor]
    """Hook name as the user wrote it -> [n, width], in the dtype of the source."""
    provenance: Provenance | None = None
    """The origin of each row, on the device of the activations; None if the source has none."""
    model_pass: ModelPass | None = None
    """The forward pass that gave these rows, if they are all rows of some full contexts."""

    def __len__(self) -> int:
        return next(iter(self.acts.values())).shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the activations."""
        return next(iter(self.acts.values())).device

    def tensors(self) -> Iterator[Tensor]:
        """Yield the activations of every hook and every column of the provenance."""
        yield from self.acts.values()
        if self.provenance is not None:
            yield from self.provenance.columns.values()

    def rows(self, index: Tensor | slice) -> Batch:
        """Return the rows at `index`, without `model_pass`, which belongs to all rows.

        `index` is an int64 tensor on the device of the batch (rows are copied) or a slice.
        """
        acts = {hook: acts[index] for hook, acts in self.acts.items()}
        return Batch(acts, None if self.provenance is None else self.provenance.rows(index))

    def split(self, size: int) -> list[Batch]:
        """Return consecutive views of `size` rows; the last may be shorter."""
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`; `model_pass` stays with the model."""
        acts = {
            hook: acts.to(device, non_blocking=non_blocking) for hook, acts in self.acts.items()
        }
        provenance = self.provenance
        if provenance is not None:
            provenance = provenance.to(device, non_blocking)
        return Batch(acts, provenance, self.model_pass)


@dataclass
class PositionCounts:
    """Numbers of positions read so far, summed over the blocks handed out."""

    kept: int = 0
    """Positions handed out, including repeats."""
    skipped: int = 0
    """Left out by the rule on tokens: special tokens, padding, the first `skip_first` of a row."""
    tail: int = 0
    """Usable, but behind the last position that fitted into a block from its last row."""
    non_finite: int = 0
    """Left out because an activation was NaN or infinite."""
    outliers: int = 0
    """Left out because the norm exceeded `outlier_norm` times the median norm of the block."""
    passes: int = 0
    """Passes over the text started."""

    def __add__(self, other: PositionCounts) -> PositionCounts:
        return PositionCounts(
            self.kept + other.kept,
            self.skipped + other.skipped,
            self.tail + other.tail,
            self.non_finite + other.non_finite,
            self.outliers + other.outliers,
            max(self.passes, other.passes),
        )
