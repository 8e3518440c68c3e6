"""The text that every Python carries: its reference topics and its library's docstrings."""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sae.activations.text import Text

SKIPPED = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
"""Folders of the standard library whose text is tests, vendored wheels or an application."""

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class BuiltinText(Text):
    """About 2 MB of English: `pydoc_data.topics`, then the docstrings of the standard library.

    A document is one topic, or all docstrings of one source file in order of appearance (empty
    when it has none, which keeps document n the n-th file). Sources are parsed, never imported.
    Both orders are alphabetic, so the text is the same wherever the version of Python is.
    """

    def __init__(self) -> None:
        self._parsed: dict[Path, str] = {}

    def __repr__(self) -> str:
        return "text=BuiltinText"

    def documents(self, start: int = 0) -> Iterator[str]:
        topics = _topics()
        yield from topics[start:]
        for path in _sources()[max(0, start - len(topics)) :]:
            if path not in self._parsed:
                self._parsed[path] = docstrings(path)
            yield self._parsed[path]

    def fingerprint(self) -> str:
        return f"BuiltinText {platform.python_version()}"


def _topics() -> list[str]:
    spec = importlib.util.find_spec("pydoc_data.topics")
    if spec is None:
        return []
    from pydoc_data.topics import topics

    return [topics[name].strip() for name in sorted(topics)]


def _sources() -> list[Path]:
    found: list[Path] = []
    for folder, folders, files in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = sorted(x for x in folders if x not in SKIPPED and not x.startswith("config-"))
        found += [Path(folder, name) for name in sorted(files) if name.endswith(".py")]
    return found


def docstrings(path: Path) -> str:
    """All docstrings of the source file at `path`, a blank line between two."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and the like, which lie among the sources
        return ""
    return "\n\n".join(_docstrings(tree))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
        yield text
    # Statements only: a walk that visits every expression as well takes twice as long as parsing.
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, block, ()):
            yield from _docstrings(child)
