"""The base class of every source of activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sae.activations.batch import Batch, PositionCounts, Split
from sae.configurable import Configurable
from sae.errors import UserError

if TYPE_CHECKING:
    from sae.activations.capabilities import KnownFeatures, LabelledNetwork, TextModel
    from sae.activations.full_contexts import FullContextBatches


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
