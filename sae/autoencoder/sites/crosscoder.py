"""Sites with several hooks at once: crosscoders, cross-layer transcoders (Anthropic 2024, 2025)."""

from dataclasses import dataclass, replace

from sae.autoencoder.sites.base import Site
from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Crosscoder(Site):
    """Several hooks (layers, or models) share codes: all are read, and all are predicted.

    Args:
        read: The hooks; all that are harvested by default.

    Raises:
        UserError: `read` is empty, or names a hook twice.
    """

    read: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        read = self.read
        if read is not None and (not read or len(set(read)) < len(read)):
            raise UserError(
                f"model.site.read={list(read)} names no hook, or one twice; give each hook once"
            )

    def named(self, harvested: tuple[str, ...]) -> "Crosscoder":
        return replace(self, read=harvested) if self.read is None else self

    @property
    def reads(self) -> tuple[str, ...]:
        return self.read or ()


@dataclass(frozen=True, kw_only=True)
class CrossLayerTranscoder(Site):
    """The latents of layer i read its input and write to the outputs of layer i and later ones.

    Each layer has an equal share of the latents, and of k.

    Args:
        read: The inputs of the layers, first to last; all of one width.
        predict: Their outputs, in the same order; all of one width.
    """

    read: tuple[str, ...]
    predict: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.read or len(self.read) != len(self.predict):
            raise UserError(
                f"model.site.read names {len(self.read)} hooks and model.site.predict "
                f"{len(self.predict)}; give one input and one output for every layer"
            )

    def check(self) -> None:
        for name, hooks in (("read", self.read), ("predict", self.predict)):
            widths = {self.widths[hook] for hook in hooks}
            if len(widths) > 1:
                raise UserError(
                    f"model.site.{name} has hooks of widths "
                    f"{', '.join(map(str, sorted(widths)))}; choose hooks that all have one width"
                )

    @property
    def reads(self) -> tuple[str, ...]:
        return self.read

    @property
    def predicts(self) -> tuple[str, ...]:
        return self.predict

    @property
    def groups(self) -> int:
        return len(self.read)
