"""What every site answers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from sae.autoencoder.family import Family


class Site(Family, ABC, family="model.site"):
    """Which activations are read and which are predicted from their codes."""

    @abstractmethod
    def bind(self, widths: dict[str, int]) -> Site:
        """This site with its hooks filled in from those that are harvested, `{hook: width}`.

        Raises UserError when a hook it needs is not harvested.
        """

    @property
    @abstractmethod
    def hooks(self) -> tuple[str, ...]:
        """Every hook this site reads or predicts; the first is the one it is spliced in at."""

    @abstractmethod
    def pair(self, acts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The input x [batch, d_in] and the target y [batch, d_out]."""
