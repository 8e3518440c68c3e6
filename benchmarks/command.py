"""Run a benchmark as a command."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sae.errors import UserError


def run_command(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the arguments of this process; a UserError is one line and exit code 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
