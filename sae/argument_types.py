"""Check the values of arguments against their annotations; a wrong one is a one-line UserError."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union

import numpy as np

from sae.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
Hints = Mapping[str, Any]


class _Words(NamedTuple):
    """The words of error messages for one value of a type, and for several."""

    one: str
    several: str


_WORDS = {
    int: _Words("a whole number", "whole numbers"),
    float: _Words("a number", "numbers"),
    bool: _Words("True or False", "True or False"),
    str: _Words("a string", "strings"),
    **dict.fromkeys((list, tuple, abc.Sequence), _Words("a list", "lists")),
    **dict.fromkeys((dict, abc.Mapping), _Words("a dict", "dicts")),
    abc.Callable: _Words("a function", "functions"),
    Path: _Words("a path", "paths"),
}
_UNSET = object()
_EXACT: dict[Any, frozenset[type]] = {
    int: frozenset({int}),
    float: frozenset({float, int}),
    bool: frozenset({bool}),
    str: frozenset({str}),
    types.NoneType: frozenset({types.NoneType}),
}


def describe(cls: type, one: str, several: str) -> None:
    """Set how error messages describe one object of a class, and a list of several."""
    _WORDS[cls] = _Words(one, several)


def checked_arguments(
    setting: str = "", names: Callable[[], Mapping[str, Any]] = dict
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that checks the arguments of a function against its annotations.

    Numbers of numpy are passed on as Python's, and an array of one dimension and a tuple as a list
    where a list is annotated.

    Args:
        setting: Put before the names of arguments in messages: "model." for `model.lr=...`.
        names: Function that returns names in the annotations that are not in the function's module.

    Raises:
        UserError: An argument is unknown or missing, or has a value of a wrong type.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        function_name = function.__qualname__.removesuffix(".__init__")
        if "." not in function.__qualname__:
            function_name = f"{function.__module__.partition('.')[0]}.{function_name}"

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = bind(signature, args, kwargs, function_name)
            for name, parameter in signature.parameters.items():
                if name not in bound.arguments and _is_required(parameter):
                    raise UserError(f"{setting}{name} is missing; {function_name} needs it")
            check_arguments(bound, hints_of(function, names), setting)
            return function(*bound.args, **bound.kwargs)

        return wrapper

    return decorate


def bind(
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    function_name: str,
) -> inspect.BoundArguments:
    """Return the arguments of a call by name; some may be missing.

    Raises:
        UserError: An argument is unknown, or too many are given without a name.
    """
    try:
        return signature.bind_partial(*args, **kwargs)
    except TypeError as error:
        known = [name for name in signature.parameters if name != "self"]
        for name in kwargs:
            if name not in known:
                near = [k for k in known if k == "".join(word[:1] for word in name.split("_"))]
                near += difflib.get_close_matches(name, known, n=1)
                if near:
                    remedy = f"did you mean {near[0]}=?"
                elif len(known) < 15:
                    remedy = f"it has {', '.join(known)}"
                else:
                    remedy = f"help({function_name}) lists them"
                raise UserError(f"{function_name} has no argument {name}=; {remedy}") from None
        by_name = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        name = (by_name or known or ["name"])[0]
        raise UserError(
            f"{function_name}: {error}; give arguments by name, such as {name}="
        ) from None


def check_arguments(bound: inspect.BoundArguments, hints: Hints, setting: str = "") -> None:
    """Check the arguments of a call as `check_values` does, and put the checked values in `bound`.

    Each argument in `*args` and `**kwargs` is checked against the annotation of these.
    """
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if name not in hints:
            continue
        if kind is inspect.Parameter.VAR_POSITIONAL:
            items = check_values({name: tuple[hints[name], ...]}, {name: value}, setting)[name]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            items = check_values(dict.fromkeys(value, hints[name]), value, setting)
        else:
            items = check_values(hints, {name: value}, setting)[name]
        bound.arguments[name] = items


def check_fields(instance: Any, setting: str) -> None:
    """Check the fields of a dataclass against their annotations, for its `__post_init__`.

    Numbers of numpy are replaced by Python's, and sequences by lists or tuples as annotated.

    Raises:
        UserError: A field has a value of a wrong type; the message calls it `setting` + its name.
    """
    for name, hint, exact in _field_hints(type(instance)):
        value = getattr(instance, name, _UNSET)
        if value is _UNSET:  # a field with init=False, which the class's `__post_init__` will set
            continue
        if type(value) not in exact:  # most values end here, as objects are made in training too
            checked = check_values({name: hint}, {name: value}, setting)[name]
            if checked is not value:
                object.__setattr__(instance, name, checked)


def check_values(hints: Hints, values: Mapping[str, Any], setting: str = "") -> dict[str, Any]:
    """Return values by name, as Python objects of the annotated types.

    Args:
        hints: Annotation of each name, as from `typing.get_type_hints(..., include_extras=True)`.
            A string in `Annotated` describes what a value may be. Names without one are not
            checked.
        values: The values to check.
        setting: Put before a name in messages.

    Raises:
        UserError: A value does not have its type; the message names it, and says what it takes.
    """
    checked = {}
    for name, value in values.items():
        try:
            checked[name] = _fit(hints.get(name, Any), value, "")
        except _Mismatch as mismatch:
            raise UserError(mismatch.message(f"{setting}{name}")) from None
    return checked


class _Mismatch(Exception):
    """A value, or a part of it at `path` such as "[0]", that is not what its annotation says."""

    def __init__(self, path: str, value: Any, hint: Any, wanted: str) -> None:
        super().__init__(path)
        self.path, self.hint, self.wanted = path, hint, wanted
        self.value = value.item() if isinstance(value, np.generic) else value

    def message(self, name: str) -> str:
        value, wanted = self.value, self.wanted
        start = f"{name}{self.path}={shown(value)}"
        if isinstance(value, type):
            return f"{start} is a class; give an object: {wanted}"
        if value is None:
            return f"{start}; give {wanted}"
        if _is_choice(self.hint) and isinstance(value, str):
            return f"{start} is not known; give {wanted}"
        if _fits_an_item(self.hint, value):
            return f"{start} is not in a list; give {wanted}"
        return f"{start} is {_kind(value)}; give {wanted}"


def shown(value: Any) -> str:
    """Return a value in one short line, as error messages show it."""
    if isinstance(value, type):
        return value.__name__
    shape = getattr(value, "shape", None)  # of tensors, arrays and tables of any library
    if isinstance(shape, tuple) and not isinstance(value, np.generic):
        return f"<{type(value).__name__} of shape {tuple(shape)}>"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a class of the user's with a faulty `__repr__`
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(value: Any) -> str:
    name = {"str": "string", "NoneType": "None"}.get(type(value).__name__, type(value).__name__)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _fit(hint: Any, value: Any, path: str) -> Any:
    """Return a value as an annotation has it; raises _Mismatch."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        try:
            return _fit(args[0], value, path)
        except _Mismatch as mismatch:
            words = next((word for word in args[1:] if isinstance(word, str)), None)
            if words is not None and mismatch.path == path:
                mismatch.wanted = words
            raise
    if origin in (Union, types.UnionType):
        return _fit_union(hint, args, value, path)
    if isinstance(value, np.generic) and not _is_numpy_type(hint):
        value = value.item()
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in args):
            raise _Mismatch(path, value, hint, _in_words(hint).one)
        return value
    cls = origin or hint
    if cls in (list, tuple, abc.Sequence) and isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(cls, type):
        return value  # Any, a type variable, Final, or a name that is not known
    if not _is_instance(value, cls):
        raise _Mismatch(path, value, hint, _in_words(hint).one)
    if isinstance(value, abc.Mapping) and issubclass(cls, abc.Mapping) and len(args) == 2:
        items = {key: _fit(args[1], item, f"{path}[{key!r}]") for key, item in value.items()}
        return value if all(items[key] is item for key, item in value.items()) else items
    if cls in (list, tuple, abc.Sequence):
        return _fit_sequence(hint, cls, args, value, path)
    return value


def _fit_union(hint: Any, choices: tuple[Any, ...], value: Any, path: str) -> Any:
    deepest = None
    for choice in choices:
        try:
            return _fit(choice, value, path)
        except _Mismatch as mismatch:
            if mismatch.path != path and deepest is None:
                deepest = mismatch  # the container is right, an item in it is wrong
    raise deepest or _Mismatch(path, value, hint, _in_words(hint).one)


def _fit_sequence(hint: Any, cls: type, args: tuple[Any, ...], value: Any, path: str) -> Any:
    fixed = cls is tuple and args and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
        raise _Mismatch(path, value, hint, _in_words(hint).one)
    hints = args if fixed else [args[0] if args else Any] * len(value)
    exact = frozenset() if fixed or not args else _exact_types(args[0])
    items = [
        item if type(item) in exact else _fit(h, item, f"{path}[{i}]")
        for i, (h, item) in enumerate(zip(hints, value, strict=True))
    ]
    if isinstance(value, cls) and all(a is b for a, b in zip(items, value, strict=True)):
        return value
    return tuple(items) if cls is tuple else items


def _is_instance(value: Any, cls: type) -> bool:
    if isinstance(value, bool):
        return cls in (bool, object)
    if cls is float:
        return isinstance(value, float | int)
    if cls is Path:
        return isinstance(value, str | Path)
    if cls in (list, tuple, abc.Sequence):
        return isinstance(value, abc.Sequence) and not isinstance(value, str | bytes)
    if cls in (dict, abc.Mapping):
        return isinstance(value, abc.Mapping)
    if cls is abc.Iterable and isinstance(value, str | bytes | abc.Mapping | type):
        return False
    if cls is complex:
        return isinstance(value, complex | float | int)
    try:
        return isinstance(value, cls)
    except TypeError:  # a Protocol that is not for use at run time
        return True


def _is_numpy_type(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, np.generic)


def _fits_an_item(hint: Any, value: Any) -> bool:
    """Return whether a value is one item of the list that an annotation asks for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType, Annotated):
        return any(_fits_an_item(choice, value) for choice in args)
    if origin not in (list, tuple, abc.Sequence) or not args:
        return False
    if origin is tuple and args[-1] is not Ellipsis:
        return False
    try:
        _fit(args[0], value, "")
    except _Mismatch:
        return False
    return True


def _is_choice(hint: Any) -> bool:
    """Return whether an annotation lists strings to choose from."""
    choices = (hint, *typing.get_args(hint))
    return any(typing.get_origin(choice) is Literal for choice in choices)


def _in_words(hint: Any) -> _Words:
    """Return a description of what an annotation admits."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        words = next((word for word in args[1:] if isinstance(word, str)), None)
        return _in_words(args[0]) if words is None else _Words(words, words)
    if origin in (Union, types.UnionType):
        words = [_in_words(choice) for choice in args if choice is not types.NoneType]
        end = ", or None" if types.NoneType in args else ""
        one, several = _either(w.one for w in words), _either(w.several for w in words)
        return _Words(one + end, several + end)
    if origin is Literal:
        words = _either(map(repr, args))
        return _Words(words, words)
    if origin is tuple and args and args[-1] is not Ellipsis:
        return _Words(f"{len(args)} {_in_words(args[0]).several}", "tuples")
    if origin in (list, tuple, abc.Sequence) and args:
        return _Words(f"a list of {_in_words(args[0]).several}", "lists")
    if origin in (dict, abc.Mapping) and args:
        return _Words(f"a dict of {_in_words(args[1]).several}", "dicts")
    cls = origin or hint
    if hint is Any:
        return _Words("anything", "anything")
    if cls in _WORDS:
        return _WORDS[cls]
    name = cls.__name__ if isinstance(cls, type) else str(cls)
    return _Words(f"{'an' if name[0] in 'AEIOU' else 'a'} {name}", f"{name} objects")


def _either(words: abc.Iterable[str]) -> str:
    *most, last = dict.fromkeys(words)
    return f"{', '.join(most)} or {last}" if most else last


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variable


@functools.cache
def hints_of(function: Callable[..., Any], names: Callable[[], Mapping[str, Any]] = dict) -> Hints:
    """Return the annotations of a function; {} if they have names that cannot be looked up.

    Args:
        function: The function.
        names: Function that returns further names that may be in its annotations.
    """
    try:
        return typing.get_type_hints(function, localns=dict(names()), include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return {}


@functools.cache
def _field_hints(cls: Any) -> list[tuple[str, Any, frozenset[type]]]:
    """Return the name and annotation of each field, and types that fit it without conversion."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return []
    names = [field.name for field in dataclasses.fields(cls)]
    return [(name, hints[name], _exact_types(hints[name])) for name in names]


def _exact_types(hint: Any) -> frozenset[type]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return frozenset().union(*map(_exact_types, typing.get_args(hint)))
    return _EXACT.get(hint, frozenset()) if isinstance(hint, type) else frozenset()
