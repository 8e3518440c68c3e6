"""The sparse autoencoder proper: x is read and x is predicted."""

from dataclasses import dataclass, replace

from torch import Tensor

from sae.autoencoder.sites.base import Site
from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Autoencode(Site):
    """x -> x at one hook.

    Args:
        hook: the hook to read, one of `data.source.hooks`; may be left out when there is only one.
    """

    hook: str | None = None

    def bind(self, widths: dict[str, int]) -> "Autoencode":
        known = ", ".join(widths)
        if self.hook is None:
            if len(widths) > 1:
                raise UserError(
                    f"model.site.hook is not set and several hooks are harvested: {known}; name one"
                )
            return replace(self, hook=next(iter(widths)))
        if self.hook not in widths:
            raise UserError(f"model.site.hook={self.hook} is not harvested; choose among: {known}")
        return self

    @property
    def hooks(self) -> tuple[str, ...]:
        return () if self.hook is None else (self.hook,)

    def pair(self, acts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = acts[self.hook]
        return x, x
