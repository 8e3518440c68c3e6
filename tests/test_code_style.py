"""Rules about the text of the code that ruff has no check for."""

from __future__ import annotations

import ast
from itertools import pairwise
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


def docstrings(tree: ast.Module) -> list[tuple[int, str]]:
    """Return the line and the text of every docstring, those below an assignment included."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, described)]
    first = [body[0] for body in bodies if body]
    after_assignment = [
        statement
        for body in bodies
        for previous, statement in pairwise(body)
        if isinstance(previous, ast.Assign | ast.AnnAssign)
    ]
    return [
        (statement.lineno, statement.value.value.strip())
        for statement in first + after_assignment
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ]


def test_docstrings_are_found_wherever_they_stand():
    code = '''
"""Module."""
LIMIT = 3
"""Limit."""
class Size:
    """Class."""
    width: int
    """Width."""
    def area(self):
        """Area."""
        text = "no docstring"
        return text
'''
    texts = {text for _, text in docstrings(ast.parse(code))}
    assert texts == {"Module.", "Limit.", "Class.", "Width.", "Area."}


def test_no_file_is_longer_than_400_lines():
    long = {f: len(f.read_text().splitlines()) for f in python_files()}
    assert not {str(f): lines for f, lines in long.items() if lines > MOST_LINES}


def test_no_docstring_begins_with_a_question_word():
    wrong = [
        f"{file.relative_to(REPO)}:{line}: {text.splitlines()[0]}"
        for file in python_files()
        for line, text in docstrings(ast.parse(file.read_text()))
        if text.split()[0].strip(",.:").lower() in NOT_FIRST
    ]
    assert not wrong, "\n".join(wrong)
