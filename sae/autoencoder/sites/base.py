"""What every site answers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from sae.autoencoder.registry import Registered
from sae.errors import UserError


class Site(Registered, ABC, family="model.site"):
    """Which activations are read and which are predicted from their codes.

    Several hooks stand side by side: x is [batch, sum of the widths read], y [batch, sum of the
    widths predicted].

    Attributes:
        widths: `{hook: width}` of its hooks; empty until `bind`.
    """

    widths: Mapping[str, int] = MappingProxyType({})  # no setting: not annotated in a subclass

    def bind(self, widths: Mapping[str, int]) -> Self:
        """This site with its hooks filled in from those that are harvested, `{hook: width}`.

        Raises UserError when a hook it needs is not harvested.
        """
        bound = self.named(tuple(widths))
        for hook in bound.hooks:
            if hook not in widths:
                raise UserError(
                    f"model.site names {hook}, which is not harvested; choose among: "
                    f"{', '.join(widths)}"
                )
        bound = copy.copy(bound)
        object.__setattr__(bound, "widths", {hook: widths[hook] for hook in bound.hooks})
        bound.check()
        return bound

    def named(self, harvested: tuple[str, ...]) -> Self:
        """This site with hooks that were left out chosen among those harvested."""
        return self

    def check(self) -> None:
        """Raises UserError for widths that do not go together."""

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "widths": dict(self.widths)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
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

    def __str__(self) -> str:
        """What is read, and what is predicted where that is something else."""
        reads, predicts = ", ".join(self.reads), ", ".join(self.predicts)
        return reads if self.reads == self.predicts else f"{reads} -> {predicts}"

    @property
    def skip(self) -> bool:
        """Whether a linear map of x is added to the prediction."""
        return False

    @property
    def groups(self) -> int:
        """Into how many groups latents fall: group i reads the i-th hook only, and writes to no
        prediction before the i-th. 1: every latent reads and writes all."""
        return 1

    @property
    def hooks(self) -> tuple[str, ...]:
        """Every hook this site reads or predicts."""
        return tuple(dict.fromkeys(self.reads + self.predicts))

    @property
    def d_in(self) -> int:
        """Width of what one latent reads."""
        total = sum(self.widths[hook] for hook in self.reads)
        return total // self.groups

    @property
    def d_out(self) -> int:
        return sum(self.widths[hook] for hook in self.predicts)

    def pair(self, acts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The input x [batch, d_in] and the target y [batch, d_out]; one and the same tensor where
        the same hooks are read and predicted."""
        x = _beside(acts, self.reads)
        return x, x if self.predicts == self.reads else _beside(acts, self.predicts)

    def split(self, y: Tensor) -> dict[str, Tensor]:
        """What of a prediction [batch, d_out] belongs to which hook."""
        widths = [self.widths[hook] for hook in self.predicts]
        return dict(zip(self.predicts, y.split(widths, dim=1), strict=True))

    def factors(self, scale: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """The scale of every column of x and of y, float64."""
        column = lambda hook: torch.full((self.widths[hook],), scale[hook], dtype=torch.float64)
        of = lambda hooks: torch.cat([column(hook) for hook in hooks])
        return of(self.reads), of(self.predicts)


def _beside(acts: Mapping[str, Tensor], hooks: tuple[str, ...]) -> Tensor:
    return acts[hooks[0]] if len(hooks) == 1 else torch.cat([acts[hook] for hook in hooks], dim=1)
