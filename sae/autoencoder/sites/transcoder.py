"""Transcoders predict one hook from another (Dunefsky et al. 2024; Paulo et al. 2025)."""

from dataclasses import dataclass

from sae.autoencoder.sites.base import Site
from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Transcoder(Site):
    """x -> y, with x at one hook and y at another. No bias is subtracted from x.

    Args:
        read: The hook that is read, for instance `layers.3.mlp.in`.
        predict: The hook that is predicted, for instance `layers.3.mlp`.
    """

    read: str
    predict: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.read == self.predict:
            raise UserError(
                f"model.site.read and model.site.predict are both {self.read}; use Autoencoder, or "
                "name two hooks"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.read,)

    @property
    def predicts(self) -> tuple[str, ...]:
        return (self.predict,)


@dataclass(frozen=True, kw_only=True)
class SkipTranscoder(Transcoder):
    """A transcoder that adds a linear map of x, which starts at 0, to the prediction.

    Args:
        read: The hook that is read.
        predict: The hook that is predicted.
    """

    @property
    def skip(self) -> bool:
        return True
