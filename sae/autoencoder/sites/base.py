"""Base class of sites: which hooks an SAE reads and which it predicts."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from sae.argument_types import describe
from sae.autoencoder.registry import Registered
from sae.errors import UserError


class Site(Registered, ABC, family="model.site"):
    """The hooks that are read, and the hooks that are predicted from their codes.

    Several hooks stand side by side: x is [batch, sum of the widths read], y [batch, sum of the
    widths predicted].

    Attributes:
        widths: `{hook: width}` of the site's hooks; empty until `bind`.
    """

    widths: Mapping[str, int] = MappingProxyType({})  # not a setting: no subclass annotates it

    def bind(self, widths: Mapping[str, int]) -> Self:
        """Return this site with its hooks chosen among those that are harvested.

        Args:
            widths: `{hook: width}` of the harvested hooks.

        Raises:
            UserError: A hook of the site is not harvested, or widths do not go together.
        """
        bound = self.named(tuple(widths))
        for hook in bound.hooks:
            if hook not in widths:
                raise UserError(
                    f"model.site names the hook {hook}, which is not harvested; choose among: "
                    f"{', '.join(widths)}"
                )
        bound = copy.copy(bound)
        object.__setattr__(bound, "widths", {hook: widths[hook] for hook in bound.hooks})
        bound.check()
        return bound

    def named(self, harvested: tuple[str, ...]) -> Self:
        """Return this site with hooks that were left out chosen among those harvested."""
        return self

    def check(self) -> None:
        """Raise UserError for widths that do not go together."""

    def to_dict(self) -> dict[str, Any]:
        """Return the class name, the fields and the widths, as JSON values."""
        return {**super().to_dict(), "widths": dict(self.widths)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Rebuild a site from `to_dict`; raises UserError on an unknown class or field."""
        fields = dict(saved)
        widths = fields.pop("widths", {})
        site = super().from_dict(fields)
        return site.bind(widths) if widths else site

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """The hooks that are read."""

    @property
    def predicts(self) -> tuple[str, ...]:
        """The hooks that are predicted."""
        return self.reads

    @property
    def predicts_input(self) -> bool:
        """True if the prediction is of x itself."""
        return self.reads == self.predicts

    def __str__(self) -> str:
        """Return the hooks that are read, and those that are predicted if these differ."""
        reads, predicts = ", ".join(self.reads), ", ".join(self.predicts)
        return reads if self.predicts_input else f"{reads} -> {predicts}"

    @property
    def skip(self) -> bool:
        """True if a linear map of x is added to the prediction."""
        return False

    @property
    def groups(self) -> int:
        """The number of groups of latents.

        With several, group i reads only the i-th hook, and writes to no prediction before the
        i-th. With 1, every latent reads and writes everything.
        """
        return 1

    @property
    def hooks(self) -> tuple[str, ...]:
        """Every hook that this site reads or predicts."""
        return tuple(dict.fromkeys(self.reads + self.predicts))

    @property
    def d_in(self) -> int:
        """The width that one latent reads."""
        total = sum(self.widths[hook] for hook in self.reads)
        return total // self.groups

    @property
    def d_out(self) -> int:
        """The width of the prediction."""
        return sum(self.widths[hook] for hook in self.predicts)

    def pair(self, acts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the input x [batch, d_in] and the target y [batch, d_out] of a batch.

        They are one and the same tensor if the site predicts what it reads.
        """
        x = _side_by_side(acts, self.reads)
        return x, x if self.predicts_input else _side_by_side(acts, self.predicts)

    def split(self, y: Tensor) -> dict[str, Tensor]:
        """Return the part of a prediction [batch, d_out] that belongs to each hook."""
        widths = [self.widths[hook] for hook in self.predicts]
        return dict(zip(self.predicts, y.split(widths, dim=1), strict=True))

    def column_scales(self, scale: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return the scale of every column of x and of y, float64, from the scale of each hook."""

        def columns(hooks: tuple[str, ...]) -> Tensor:
            each = [
                torch.full((self.widths[hook],), scale[hook], dtype=torch.float64) for hook in hooks
            ]
            return torch.cat(each)

        return columns(self.reads), columns(self.predicts)


describe(Site, "a site such as Autoencoder(hook='layers.3')", "sites")


def _side_by_side(acts: Mapping[str, Tensor], hooks: tuple[str, ...]) -> Tensor:
    return acts[hooks[0]] if len(hooks) == 1 else torch.cat([acts[hook] for hook in hooks], dim=1)
