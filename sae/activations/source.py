"""The base class of every source of activations, and the batches that sources give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from sae.activations.provenance import Provenance
from sae.configurable import Configurable
from sae.errors import UserError

if TYPE_CHECKING:
    from sae.activations.capabilities import KnownFeatures, LabelledNetwork, TextModel
    from sae.activations.full_contexts import FullContextBatches, ModelRun

Split = Literal["train", "held_out"]


@dataclass
class Batch:
    """Activations by hook, with the place each came from where the source knows it.

    Row i of every tensor is the same position.
    """

    acts: dict[str, Tensor]
    """Hook name as the user wrote it -> [n, width], in the dtype of the source."""
    provenance: Provenance | None = None
    """The origin of each row, on the device of the activations; None if the source has none."""
    run: ModelRun | None = None
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
        """Return the rows at `index`, without `run`, which belongs to all rows.

        `index` is an int64 tensor on the device of the batch (rows are copied) or a slice.
        """
        acts = {hook: acts[index] for hook, acts in self.acts.items()}
        return Batch(acts, None if self.provenance is None else self.provenance.rows(index))

    def split(self, size: int) -> list[Batch]:
        """Return consecutive views of `size` rows; the last may be shorter."""
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`; `run` stays with the model."""
        acts = {
            hook: acts.to(device, non_blocking=non_blocking) for hook, acts in self.acts.items()
        }
        provenance = self.provenance
        if provenance is not None:
            provenance = provenance.to(device, non_blocking)
        return Batch(acts, provenance, self.run)


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


class Source(Configurable, ABC):
    """A place that activations come from, such as a model on text or a world.

    A subclass sets `widths`, writes `block`, and overrides what else it has to offer.
    """

    widths: dict[str, int]
    """Hook name -> width of its activations; known after `setup`."""

    provenance_columns: ClassVar[tuple[str, ...]] = ()
    """Names of the columns in the provenance of its batches; () if they have none."""

    def setup(self, device: torch.device | str = "cpu") -> None:  # noqa: B027
        """Do the heavy work once, before the first block: load a model, look at the data.

        Blocks are on `device` from then on. A second call must do nothing.
        """

    @abstractmethod
    def block(self, split: Split, index: int, size: int, seed: int) -> Batch:
        """Return block `index` of `split`, a pure function of the arguments and the settings.

        "train" is endless and gives exactly `size` rows. "held_out" may be finite: its last block
        may be shorter, and every block after that has no rows. Rows of "held_out" never appear in
        "train".
        """

    @property
    def activation_dtype(self) -> torch.dtype:
        """The dtype of the activations."""
        return torch.float32

    def metadata(self) -> dict[str, Any]:
        """Return plain data about the activations, to save with what is trained on them."""
        return {}

    @property
    def counts(self) -> PositionCounts:
        """Numbers of "train" positions used and left out so far."""
        return PositionCounts()

    def known_features(self) -> KnownFeatures | None:
        """Return the true features behind the activations, or None if nobody knows them."""
        return None

    def text_model(self) -> TextModel | None:
        """Return the model and its text, for examples and for running on changed activations.

        None if the activations do not come from a model on text.
        """
        return None

    def labelled_network(self) -> LabelledNetwork | None:
        """Return the classifier behind the activations whose latents are known, or None."""
        return None

    def random_weights_twin(self, seed: int = 0) -> Source | None:
        """Return this source, not set up, with random weights in its model; None without a model.

        It serves as a baseline: features found in it were not learned by the model.
        """
        return None

    def full_contexts(self, batch_size: int, block_batches: int) -> FullContextBatches:
        """Return the "train" split in batches of full contexts, for losses that run the model.

        Raises:
            UserError: the source has no model that predicts tokens.
        """
        raise UserError(
            f"model.losses has a term that runs a language model; data.source="
            f"{type(self).__name__} has none, use ModelActivations"
        )

    def hints(self, split: Split, size: int) -> Sequence[Any]:
        """Return plain data with which a new source reaches blocks not made yet sooner."""
        return []

    def use_hints(self, split: Split, size: int, hints: Sequence[Any]) -> None:  # noqa: B027
        """Accept what `hints` returned, perhaps in another process.

        Hints save time and never change a block.
        """
