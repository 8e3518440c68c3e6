"""Base class of sites, sparsity rules and loss terms: a name, settings and a registry."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, ClassVar, Self

from sae import legacy
from sae.argument_types import check_fields
from sae.errors import UserError


class Registered:
    """Base of small frozen dataclasses that are their own configuration.

    A family (`class Site(Registered, family="model.site")`) has a registry, and every subclass of
    it, also from outside this package, is registered under its name. A saved SAE is rebuilt from
    `{"class": name, **fields}`. Only registered names are accepted: loading a file never imports
    anything. A subclass with `abstract=True` is a shared base and is not registered.

    A subclass with a `__post_init__` of its own calls `super().__post_init__()` first, which checks
    the types of the fields.
    """

    registry: ClassVar[dict[str, type]]
    family: ClassVar[str]

    def __init_subclass__(
        cls, family: str | None = None, abstract: bool = False, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls.family, cls.registry = family, {}
        elif not abstract:
            cls.registry[cls.__name__] = cls

    def __post_init__(self) -> None:
        check_fields(self, self.setting(""))

    @classmethod
    def setting(cls, field: str) -> str:
        """Return the name of a field as error messages have it, such as `model.sae.k`."""
        return f"{cls.family}.{field}"

    def to_dict(self) -> dict[str, Any]:
        """Return the class name and the fields, as JSON values."""
        return {"class": type(self).__name__, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Rebuild an object from `to_dict`; raises UserError on an unknown class or field."""
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
