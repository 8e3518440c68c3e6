"""Protocols for everything that a source may offer beyond activations.

`Source` has a method for each of these Protocols. It returns None unless a source overrides it, so
metrics, the planner and the browser ask the source instead of testing for its class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from sae.activations.batch import Split
    from sae.activations.model import ActivationModel
    from sae.activations.tokens import Contexts, PositionRule
    from sae_kernels.codes import Codes


class KnownFeatures(Protocol):
    """The true features behind the activations (`Source.known_features`)."""

    @property
    def truth(self) -> Tensor:
        """The true dictionary, one direction per feature, float32 [features, width] on the CPU."""
        ...

    @property
    def parents(self) -> Tensor | None:
        """For each feature the one without which it is never active, -1 for none, int64 [features].

        None if the features have no hierarchy.
        """
        ...

    def codes(self, split: Split, index: int, size: int, seed: int) -> Codes:
        """Return the true codes of `Source.block` with the same arguments, on the CPU."""
        ...


class TextModel(Protocol):
    """A model that can be run on the text behind the activations (`Source.text_model`)."""

    widths: dict[str, int]

    @property
    def model(self) -> ActivationModel:
        """The frozen model, loaded; available after `Source.setup`."""
        ...

    @property
    def rule(self) -> PositionRule:
        """The rule for which positions are used; available after `Source.setup`."""
        ...

    def contexts(self, split: Split, rows: int | None = None) -> Iterator[Contexts]:
        """Yield the contexts of a split from its start, at most `rows` at a time.

        "held_out" ends after one pass; "train" does not end.
        """
        ...


class LabelledNetwork(Protocol):
    """A classifier of data whose latents are known (`Source.labelled_network`).

    `identify` measures on it whether the representation is linear in the latents.
    """

    classes: int

    @property
    def network(self) -> Classifier:
        """The trained classifier: its forward pass gives the representation."""
        ...

    @property
    def mixing(self) -> Callable[[Tensor], Tensor]:
        """The function from latents [n, features] to the data that the network reads."""
        ...

    @property
    def expected_scale(self) -> float | None:
        """The scale of the linear map from representation to latents, if theory gives one."""
        ...

    def sample(self, split: Split, index: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the latents behind `Source.block` with the same arguments, and their labels."""
        ...

    def untrained_network(self) -> Classifier:
        """Return the classifier with its starting weights."""
        ...

    def with_network_seed(self, network_seed: int) -> LabelledNetwork:
        """Return the same data with a classifier of another seed, trained independently."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Return the settings; `network_seed` is one of them."""
        ...


class Classifier(Protocol):
    """A network with a representation and a head."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the representation [n, width] of data."""
        ...

    def logits(self, y: Tensor) -> Tensor:
        """Return the logits of the labels [n, labels] for representations."""
        ...
