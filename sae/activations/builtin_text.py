"""The text that comes with every Python: its help topics and the docstrings of its library."""

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
"""Folders in the standard library with tests, vendored wheels or applications."""

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class BuiltinText(Text):
    """About 2 MB of English: `pydoc_data.topics`, then the docstrings of the standard library.

    A document is one topic, or all docstrings of one source file in their order (empty if the file
    has none, so that document n is always the n-th file). Source files are parsed, never imported.
    Topics and files are sorted by name, so the text depends only on the version of Python.
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
    files: list[Path] = []
    for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = sorted(x for x in folders if x not in SKIPPED and not x.startswith("config-"))
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return files


def docstrings(path: Path) -> str:
    """Return all docstrings of a source file, separated by blank lines."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and the like
        return ""
    return "\n\n".join(_docstrings(tree))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
        yield text
    # Visits statements only: visiting every expression too takes twice as long as parsing.
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, block, ()):
            yield from _docstrings(child)
