"""Fill the reference pages from the code: the table of commands and the declarations of metrics."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `{{ commands }}` and `{{ metrics }}` by text that the code itself provides."""
    if "{{ commands }}" in markdown:
        markdown = markdown.replace("{{ commands }}", commands())
    if "{{ metrics }}" in markdown:
        markdown = markdown.replace("{{ metrics }}", metrics())
    return markdown


def commands() -> str:
    """Return a section for each command, with what `--help` prints."""
    from sae.cli.main import COMMANDS

    sections = []
    for name, command in COMMANDS.items():
        text = import_module(command.module).parser().format_help()
        summary = f"{command.summary[0].upper()}{command.summary[1:]}."
        sections.append(f"## {name}\n\n{summary}\n\n```text\n{text}\n```")
    return "\n\n".join(sections)


def metrics() -> str:
    """Return a table for each section of the metric registry."""
    from sae.metrics.registry import by_section

    sections = []
    for title, declared in by_section():
        if not declared:
            continue
        rows = [f"## {title}", "", "| key | label | meaning |", "|---|---|---|"]
        for metric in declared:
            rows.append(f"| `{metric.name}` | {metric.arrow_label} | {metric.description} |")
        sections.append("\n".join(rows))
    return "\n\n".join(sections)
