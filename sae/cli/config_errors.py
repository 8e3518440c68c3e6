"""Turn the parser's errors into one readable line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from jsonargparse import ArgumentParser

from sae.errors import UserError

_KEY = re.compile(r'Parser key "([^"]+)"')
_UNKNOWN_IN_CLASS = re.compile(r"class_path '([^']+)': (?:.*?)Option '([^']+)' is not accepted")
_UNKNOWN_IN_GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
_UNRECOGNIZED = re.compile(r"[Uu]nrecognized arguments: (.*)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_MISSING = re.compile(r'Key "([^"]+)" is required|arguments are required: ([\w.]+)')
_NO_VALUE = re.compile(r"argument (?:-\w/)?--([\w.-]+): expected one argument")
_NO_FILE = re.compile(r"File does not exist: '([^']+)'")
_NOT_POSITIVE = re.compile(r"Not of type Positive\w+: (\S+) does not conform")
_NOT_A_NUMBER = re.compile(r"Not of type Positive\w+: .*: '(.*)'$")
_CHOICE = re.compile(r"Literal\[([^\]]+)\]")
_EXPECTED = re.compile(r"Expected (?:an? )?<class '(?:\w+\.)*(\w+)'>")


def readable(
    error: Exception,
    parser: ArgumentParser,
    classes: Mapping[str, Sequence[str]] | None = None,
    prefix: str = "",
) -> UserError:
    """Return a parser's error as one line: the setting, its value, and the nearest right name.

    Args:
        error: The parser's error.
        parser: The parser, for the names of its settings.
        classes: Names of the classes that a config may name, with the settings of each.
        prefix: Put before the name of a setting: "--" if it can only be a flag.
    """
    classes = classes or {}
    text = re.sub(r"\s+", " ", str(error)).strip()
    keys = _KEY.findall(text)
    setting = ".".join(keys)
    if prefix:
        flags = {a.dest: a.option_strings[0] for a in parser._actions if a.option_strings}
        setting = flags.get(setting, setting.upper())
    equals = " " if prefix else "="
    if match := _UNKNOWN_IN_CLASS.search(text):
        name = match[1].rpartition(".")[2]
        known = classes.get(name, [])
        return UserError(f"{setting}.{match[2]} is not a setting of {name}{near(match[2], known)}")
    if match := _UNKNOWN_IN_GROUP.search(text):
        return _unknown(f"{match[1]}.{match[2]}", parser, classes, prefix)
    if match := _UNRECOGNIZED.search(text):
        word = match[1].split()[0]
        if not word.startswith("-"):
            return UserError(f"unexpected argument {word!r}; see --help")
        return _unknown(word.lstrip("-").partition("=")[0], parser, classes, prefix)
    if match := _NO_CLASS.search(text):
        return UserError(f"{setting}={match[1]} is not known{near(match[1], list(classes))}")
    if match := _MISSING.search(text):
        key = ".".join([*keys, match[1] or match[2]])
        if prefix:
            return UserError(f"{key.upper()} is missing; usage: {parser.usage}")
        return UserError(f"{key} is not set; give --{key} or put it into the config file")
    if match := _NO_VALUE.search(text):
        return UserError(f"--{match[1]} needs a value")
    if match := _NO_FILE.search(text):
        return UserError(f"{setting}={match[1]} does not exist; give a YAML file")
    if match := _NOT_POSITIVE.search(text):
        return UserError(f"{setting}{equals}{match[1]}; give at least 1")
    if match := _NOT_A_NUMBER.search(text):
        return UserError(f"{setting}{equals}{match[1]} is of the wrong kind; it takes a number")
    if match := re.search(r"(?:Got value|Given value): (.*)$", text):
        value = match[1].rstrip(". ")
        if choice := _CHOICE.search(text):
            return UserError(f"{setting}{equals}{value} is not among its choices: {choice[1]}")
        accepted = dict.fromkeys(n.replace("NoneType", "null") for n in _EXPECTED.findall(text))
        if list(accepted) == ["bool"]:
            return UserError(f"{setting}{equals}{value}; give true or false")
        return UserError(
            f"{setting}{equals}{value} is of the wrong kind; it takes {' or '.join(accepted)}"
        )
    return UserError(text)


def _unknown(
    key: str, parser: ArgumentParser, classes: Mapping[str, Sequence[str]], prefix: str
) -> UserError:
    known = [flag[2:] for action in parser._actions for flag in action.option_strings]
    known += [
        f"{group}.{name}"
        for group in ("model.sae", "model.site", "data.source")
        for names in classes.values()
        for name in names
    ]
    if prefix:
        return UserError(f"--{key} is not a flag{near(f'--{key}', [f'--{k}' for k in known if k])}")
    return UserError(f"{key} is not a setting{near(key, known)}")


def near(name: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; choose among: {', '.join(known)}" if 0 < len(known) < 15 else "; see --help"
