"""Rules about the text of the code that ruff has no check for."""

from __future__ import annotations

import ast
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
FOLDERS = ("sae", "kernels", "tests", "benchmarks")
MOST_LINES = 400
# A docstring says what something does or is. These words begin a fragment or a riddle.
NOT_FIRST = {"what", "which", "how", "where", "of", "by", "who", "whether"}


def python_files() -> list[Path]:
    files = [file for folder in FOLDERS for file in sorted((REPO / folder).rglob("*.py"))]
    assert len(files) > 300
    return files


def docstrings(file: Path) -> list[tuple[int, str]]:
    """Return the line and the text of every docstring."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, described)]
    texts = ((n.body[0].lineno if n.body else 1, ast.get_docstring(n)) for n in nodes)
    return [(line, text) for line, text in texts if text]


def test_no_file_is_longer_than_400_lines():
    long = {f: len(f.read_text().splitlines()) for f in python_files()}
    assert not {str(f): lines for f, lines in long.items() if lines > MOST_LINES}


def test_no_docstring_begins_with_a_question_word():
    wrong = [
        f"{file.relative_to(REPO)}:{line}: {text.splitlines()[0]}"
        for file in python_files()
        for line, text in docstrings(file)
        if text.split()[0].strip(",.:").lower() in NOT_FIRST
    ]
    assert not wrong, "\n".join(wrong)
