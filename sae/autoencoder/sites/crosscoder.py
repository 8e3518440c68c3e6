"""Crosscoders and cross-layer transcoders: several hooks at once (Anthropic 2024, 2025)."""

from dataclasses import dataclass, replace

from sae.autoencoder.sites.base import Site
from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Crosscoder(Site):
    """Several hooks (layers, or models) share codes: all are read, and all are predicted.

    Args:
        read: the hooks; all that are harvested when left out.
    """

    read: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.read is not None:
            object.__setattr__(self, "read", tuple(self.read))

    def named(self, harvested: tuple[str, ...]) -> "Crosscoder":
        return replace(self, read=harvested) if self.read is None else self

    @property
    def reads(self) -> tuple[str, ...]:
        return self.read or ()


@dataclass(frozen=True, kw_only=True)
class CrossLayerTranscoder(Site):
    """A cross-layer transcoder: the latents of layer i read that layer's input and write to the
    output of layer i and of every later one. Each layer has an equal share of latents, and of k.

    Args:
        read: the inputs of the layers, first to last; all of one width.
        predict: their outputs, in the same order.
    """

    read: tuple[str, ...]
    predict: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("read", "predict"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.read or len(self.read) != len(self.predict):
            raise UserError(
                f"model.site.read names {len(self.read)} hooks and model.site.predict "
                f"{len(self.predict)}; give one input and one output for every layer"
            )

    def check(self) -> None:
        for name in ("read", "predict"):
            if len({self.widths[hook] for hook in getattr(self, name)}) > 1:
                raise UserError(f"model.site.{name}: all of its hooks must have one width")

    @property
    def reads(self) -> tuple[str, ...]:
        return self.read

    @property
    def predicts(self) -> tuple[str, ...]:
        return self.predict

    @property
    def groups(self) -> int:
        return len(self.read)
