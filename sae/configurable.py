"""Objects that remember the arguments they were made with, so that a config can be written."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from sae.argument_types import bind, check_arguments, hints_of


class Configurable:
    """Base of classes that a config names by `class_path` and `init_args`.

    An instance remembers its arguments, and refuses those of a wrong type, also for subclasses
    written by users.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        bound = bind(_signature(cls), args, kwargs, cls.__qualname__)
        check_arguments(bound, hints_of(cls.__init__))
        instance = super().__new__(cls)
        instance._arguments = (args, kwargs)
        return instance

    def init_args(self) -> dict[str, Any]:
        """Return the arguments of `__init__` by name, with defaults filled in."""
        args, kwargs = self._arguments
        bound = _signature(type(self)).bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)


@functools.cache
def _signature(cls: type) -> inspect.Signature:
    return inspect.signature(cls)


class NotNameable(Exception):
    """A value that a config file cannot name, such as a tensor."""


def plain(value: Any) -> Any:
    """Return a value as a config file holds it: numbers, text, lists, dicts and class paths.

    Raises:
        NotNameable: the value, or a part of it, has no form in a config file.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Configurable):
        return _class_and_arguments(value, value.init_args())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return _class_and_arguments(value, fields)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    raise NotNameable(f"{type(value).__name__} values")


def _class_and_arguments(value: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    cls = type(value)
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise NotNameable(f"{cls.__qualname__}, a class that no module has")
    arguments = {name: plain(argument) for name, argument in arguments.items()}
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
