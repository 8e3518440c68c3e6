"""What the three families (sites, sparsity, objective) share: a name, settings, and a register."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, ClassVar, Self

from sae import legacy
from sae.errors import UserError


class Registered:
    """Base of a family of small frozen dataclasses that are their own configuration.

    Subclassing a family registers the class under its name, also from outside this package, so a
    saved autoencoder is rebuilt from `{"class": name, **fields}`. Only registered names are
    accepted: loading a file never imports anything.
    """

    registry: ClassVar[dict[str, type]]
    family: ClassVar[str]

    def __init_subclass__(cls, family: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls.family, cls.registry = family, {}
        else:
            cls.registry[cls.__name__] = cls

    def to_dict(self) -> dict[str, Any]:
        return {"class": type(self).__name__, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Rebuild from `to_dict`; raises UserError on an unknown class or field."""
        fields = dict(saved)
        name = legacy.class_name(str(fields.pop("class", None)))
        if name not in cls.registry:
            near = difflib.get_close_matches(name, cls.registry, n=1) or sorted(cls.registry)
            raise UserError(
                f"{cls.family} {name!r} is not known; did you mean {near[0]}? "
                f"A class of your own must be imported before it is loaded."
            )
        try:
            return cls.registry[name](**fields)
        except TypeError as error:
            raise UserError(f"{cls.family} {name} cannot be rebuilt: {error}") from error
