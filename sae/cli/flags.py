"""Split and complete command-line flags before they are parsed."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

_BOOLEANS = ("true", "false", "yes", "no")


def expand_flags(args: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Return arguments in which every bare boolean flag has its value.

    `--overwrite` becomes `--overwrite=true`. The same holds for flags that the parser does not
    list by themselves, such as those of a class named in the config.
    """
    kinds = {flag: action for action in parser._actions for flag in action.option_strings}
    expanded: list[str] = []
    for i, arg in enumerate(args):
        following = args[i + 1] if i + 1 < len(args) else None
        is_bare = following is None or following.startswith("--")
        if arg.startswith("--") and "=" not in arg and is_bare:
            action = kinds.get(arg)
            is_boolean = getattr(action, "_typehint", None) is bool
            if is_boolean or (action is None and not arg.startswith("--print") and "." in arg):
                arg += "" if arg.endswith(".help") else "=true"
        expanded.append(arg)
    return expanded


def split_flags(args: Sequence[str], parser: ArgumentParser) -> tuple[list[str], list[str]]:
    """Split arguments into the flags of `parser`, with their values, and all others."""
    kinds = {flag: action for action in parser._actions for flag in action.option_strings}
    own: list[str] = []
    rest: list[str] = []
    words = list(args)
    while words:
        flag = words.pop(0)
        action = kinds.get(flag.split("=")[0])
        side = rest if action is None else own
        side.append(flag)
        has_value = flag.startswith("-") and "=" not in flag and bool(words)
        if has_value and not words[0].startswith("--"):
            is_switch = getattr(action, "_typehint", None) is bool
            if not is_switch or words[0].lower() in _BOOLEANS:
                side.append(words.pop(0))
    return own, rest
