"""The site of an ordinary sparse autoencoder: it predicts what it reads."""

from dataclasses import dataclass, replace

from sae.autoencoder.sites.base import Site
from sae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Site):
    """x -> x at one hook.

    Args:
        hook: The hook to read, one of `data.source.hooks`; not needed if there is only one.
    """

    hook: str | None = None

    def named(self, harvested: tuple[str, ...]) -> "Autoencoder":
        if self.hook is not None:
            return self
        if len(harvested) > 1:
            raise UserError(
                "model.site.hook is not set, and several hooks are harvested: "
                f"{', '.join(harvested)}; name one of them"
            )
        return replace(self, hook=next(iter(harvested)))

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.hook is None else (self.hook,)
