"""`report`: write the page about a run again, and its curves as a picture."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import Namespace

from sae.cli.command import CommandParser
from sae.errors import UserError


def parser() -> CommandParser:
    """Return the parser of `report`."""
    parser = CommandParser(
        "report",
        usage="RUN [CURVES.png]",
        description="Write report.html of a run again from the files in its folder and, if a .png "
        "is named, its curves as a picture.",
        example="python train.py report runs/default curves.png",
    )
    parser.add_argument("run", type=str, help="run folder, such as runs/default")
    parser.add_argument("curves", type=str, nargs="?", help="a .png file for the curves")
    return parser


def run(options: Namespace, settings: list[str]) -> int:
    """Write the page and the picture; returns the exit code."""
    from sae.browser import curves_png, write_report

    if options.curves and Path(options.curves).suffix.lower() != ".png":
        raise UserError(f"CURVES {options.curves} is not a .png file; give a name that ends so")
    sys.stdout.write(f"{write_report(Path(options.run))}\n")
    if options.curves:
        curves_png(Path(options.run), Path(options.curves))
        sys.stdout.write(f"{options.curves}\n")
    return 0
