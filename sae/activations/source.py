"""What every place that activations come from has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from sae.errors import UserError

if TYPE_CHECKING:
    from sae.activations.full_contexts import ModelRun, Whole

Split = Literal["train", "held_out"]


@dataclass
class Batch:
    """Activations with the place each came from; row i of every tensor is the same position."""

    acts: dict[str, Tensor]
    """Hook name as the user wrote it -> [n, width], in the dtype of the model."""
    document: Tensor
    """int64 [n]: index of the document in the text (the same in every pass over it)."""
    position: Tensor
    """int64 [n]: index of the token in its document, special tokens not counted."""
    token: Tensor
    """int64 [n]: token id."""
    run: ModelRun | None = None
    """The pass of the model that gave these, where they are all of whole contexts."""

    def __len__(self) -> int:
        return self.token.shape[0]

    def rows(self, index: Tensor | slice) -> Batch:
        """The rows at `index`: an int64 tensor on the device of the others (copies), or a slice;
        without `run`, which is of all of them."""
        return Batch(
            {hook: acts[index] for hook, acts in self.acts.items()},
            self.document[index],
            self.position[index],
            self.token[index],
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        move = lambda tensor: tensor.to(device, non_blocking=non_blocking)
        return Batch(
            {hook: move(acts) for hook, acts in self.acts.items()},
            move(self.document),
            move(self.position),
            move(self.token),
            self.run,  # it stays with the model
        )


@dataclass
class Counts:
    """What became of the positions read so far, summed over the blocks handed out."""

    kept: int = 0
    """Positions handed out, repeats included."""
    skipped: int = 0
    """Left out by the rule on tokens: special tokens, padding, the first `skip_first` of a row."""
    tail: int = 0
    """Usable, but behind the last position a block had room for in its last row."""
    non_finite: int = 0
    """Left out because an activation was NaN or infinite."""
    outliers: int = 0
    """Left out because the norm exceeded `outlier_norm` times the median norm of the block."""
    passes: int = 0
    """Passes over the text begun."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.kept + other.kept,
            self.skipped + other.skipped,
            self.tail + other.tail,
            self.non_finite + other.non_finite,
            self.outliers + other.outliers,
            max(self.passes, other.passes),
        )


class Source(ABC):
    """Where activations come from: a model on text, or a world whose features are known."""

    widths: dict[str, int]
    """Hook name -> width of its activations; known after `setup`."""

    def setup(self, device: torch.device | str = "cpu") -> None:  # noqa: B027
        """Do the heavy work (load a model, look at the text), once, before the first block."""

    @abstractmethod
    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        """Block `index` of `split`: a pure function of its arguments and of the configuration.

        "train" is endless and gives exactly `size` rows. "held_out" may be finite: its last block
        may be shorter, and every block after that has no rows.
        """

    def whole(self, batch_size: int, block_batches: int) -> Whole:
        """The "train" split in batches of whole contexts that the model can be run on again.

        Raises:
            UserError: there is no model here that predicts tokens.
        """
        raise UserError(
            f"model.losses has a term that runs a language model; data.source="
            f"{type(self).__name__} has none, use ModelActivations"
        )

    def metadata(self) -> dict[str, Any]:
        """Plain data about where the activations come from, to keep beside what they train."""
        return {}

    @property
    def counts(self) -> Counts:
        """What became of the "train" positions read so far."""
        return Counts()

    def hints(self, split: Split, size: int) -> Sequence[Any]:
        """Plain data that lets a fresh source reach the blocks it has not made yet sooner."""
        return []

    def use_hints(self, split: Split, size: int, hints: Sequence[Any]) -> None:  # noqa: B027
        """Take what `hints` gave, perhaps in another process. Saves time, never changes a block."""
