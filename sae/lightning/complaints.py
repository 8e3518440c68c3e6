"""From the parser's complaints to one readable line."""

from __future__ import annotations

import difflib
import inspect
import re

from jsonargparse import ArgumentParser

from sae.activations import Source
from sae.autoencoder.family import Family
from sae.errors import UserError

_KEY = re.compile(r'Parser key "([^"]+)"')
_UNKNOWN_IN_CLASS = re.compile(r"class_path '([^']+)': (?:.*?)Option '([^']+)' is not accepted")
_UNKNOWN_IN_GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
_UNRECOGNISED = re.compile(r"[Uu]nrecognized arguments: (.*)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_MISSING = re.compile(r'Key "([^"]+)" is required')
_TYPE = re.compile(r"<class '(?:\w+\.)*(\w+)'>")


def readable(error: Exception, parser: ArgumentParser) -> UserError:
    """One line for a parser's error: the setting, the value, and the nearest right name."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    keys = _KEY.findall(text)
    where = ".".join(keys)
    if found := _UNKNOWN_IN_CLASS.search(text):
        name = found[1].rpartition(".")[2]
        known = _parameters().get(name, [])
        return UserError(f"{where}.{found[2]} is not a setting of {name}{_near(found[2], known)}")
    if found := _UNKNOWN_IN_GROUP.search(text):
        return _unknown(f"{found[1]}.{found[2]}", parser)
    if found := _UNRECOGNISED.search(text):
        return _unknown(found[1].split()[0].lstrip("-").partition("=")[0], parser)
    if found := _NO_CLASS.search(text):
        return UserError(f"{where}={found[1]} is not known{_near(found[1], list(_parameters()))}")
    if found := _MISSING.search(text):
        key = ".".join([*keys, found[1]])
        return UserError(f"{key} is not set; give --{key} or put it into the config file")
    if found := re.search(r"(?:Got value|Given value): (.*)$", text):
        accepted = dict.fromkeys(n.replace("NoneType", "null") for n in _TYPE.findall(text))
        accepted.pop("str", None) if len(accepted) > 1 else None
        return UserError(f"{where}={found[1]} is of the wrong kind; it takes {_either(accepted)}")
    return UserError(text)


def _unknown(key: str, parser: ArgumentParser) -> UserError:
    known = [flag[2:] for action in parser._actions for flag in action.option_strings]
    known += [
        f"{prefix}.{name}"
        for prefix in ("model.sae", "model.site", "data.source")
        for names in _parameters().values()
        for name in names
    ]
    return UserError(f"{key} is not a setting{_near(key, known)}")


def _parameters() -> dict[str, list[str]]:
    """The settings of every class that a config may name."""
    classes = [c for family in Family.__subclasses__() for c in family.registry.values()]
    classes += _leaves(Source)
    return {c.__name__: [p for p in inspect.signature(c).parameters] for c in classes}


def _leaves(cls: type) -> list[type]:
    return [leaf for sub in cls.__subclasses__() for leaf in [sub, *_leaves(sub)]]


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are: {', '.join(known)}" if 0 < len(known) < 15 else "; see --help"


def _either(names) -> str:
    return " or ".join(names) or "another type"
