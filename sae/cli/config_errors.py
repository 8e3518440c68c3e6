"""From the parser's complaints to one readable line."""

from __future__ import annotations

import difflib
import inspect
import re

from jsonargparse import ArgumentParser

from sae.activations import Source
from sae.autoencoder.registry import Registered
from sae.errors import UserError

_KEY = re.compile(r'Parser key "([^"]+)"')
_UNKNOWN_IN_CLASS = re.compile(r"class_path '([^']+)': (?:.*?)Option '([^']+)' is not accepted")
_UNKNOWN_IN_GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
_UNRECOGNISED = re.compile(r"[Uu]nrecognized arguments: (.*)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_MISSING = re.compile(r'Key "([^"]+)" is required|arguments are required: ([\w.]+)')
_NO_FILE = re.compile(r"File does not exist: '([^']+)'")
_CHOICE = re.compile(r"Literal\[([^\]]+)\]")
_EXPECTED = re.compile(r"Expected (?:an? )?<class '(?:\w+\.)*(\w+)'>")


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
        key = ".".join([*keys, found[1] or found[2]])
        return UserError(f"{key} is not set; give --{key} or put it into the config file")
    if found := _NO_FILE.search(text):
        return UserError(f"{where}={found[1]} does not exist; give a YAML file")
    if found := re.search(r"(?:Got value|Given value): (.*)$", text):
        value = found[1].rstrip(". ")
        if choice := _CHOICE.search(text):
            return UserError(f"{where}={value} is not among its choices: {choice[1]}")
        accepted = dict.fromkeys(n.replace("NoneType", "null") for n in _EXPECTED.findall(text))
        return UserError(f"{where}={value} is of the wrong kind; it takes {' or '.join(accepted)}")
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
    classes = [c for family in Registered.__subclasses__() for c in family.registry.values()]
    classes += leaves(Source)
    return {c.__name__: list(inspect.signature(c).parameters) for c in classes}


def leaves(cls: type) -> list[type]:
    return [leaf for sub in cls.__subclasses__() for leaf in [sub, *leaves(sub)]]


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are: {', '.join(known)}" if 0 < len(known) < 15 else "; see --help"
