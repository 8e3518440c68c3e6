"""The parser and the table entry that every command of the command line has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from sae.cli.config_errors import readable
from sae.cli.flags import expand_flags, split_flags


@dataclass(frozen=True)
class Command:
    """An entry in the table of commands.

    Attributes:
        module: The command's module. It has a function `parser()` that returns a `CommandParser`,
            and a function `run(options, settings)` that does the work and returns the exit code.
            It imports heavy libraries inside its functions, so that `--help` is quick.
        usage: One typical command line, without `python train.py`.
        summary: What the command does, in a few words.
        loads: What to import before `run`, while a message tells the user to wait.
    """

    module: str
    usage: str
    summary: str
    loads: str = "sae.cli.config"


class CommandParser(ArgumentParser):
    """The parser of a command's own flags.

    Args:
        name: Name of the command.
        usage: Its arguments, as the first line of `--help` shows them.
        description: What it does, in full sentences.
        example: A complete command line that works.
        run_settings: Whether the command also takes the settings of a run, as `fit` does. Without
            them an unknown flag is an error.
        add_help: Whether `--help` is about these flags.
    """

    def __init__(
        self,
        name: str,
        *,
        usage: str,
        description: str,
        example: str,
        run_settings: bool = False,
        add_help: bool = True,
    ) -> None:
        epilog = f"Example: {example}"
        if run_settings:
            epilog += ". All settings of a run are flags too: see `python train.py fit --help`."
        super().__init__(
            prog=f"train.py {name}",
            usage=f"train.py {name} {usage}",
            description=description,
            epilog=epilog,
            exit_on_error=False,
            add_help=add_help,
        )
        self.run_settings = run_settings

    def read(self, args: Sequence[str]) -> tuple[Namespace, list[str]]:
        """Parse the command's own flags.

        Returns:
            The values of the command's own flags, and the flags that set up a run.

        Raises:
            UserError: a flag is unknown or has a value that cannot work.
        """
        settings: list[str] = []
        if self.run_settings:
            args, settings = split_flags(args, self)
        try:
            return self.parse_args(expand_flags(args, self)), settings
        except ArgumentError as error:
            raise readable(error, self, prefix="--") from error

    def add_switch(self, *flags: str, **options: Any) -> None:
        """Add a boolean flag: bare, or with `true` or `false`."""
        self.add_argument(*flags, type=bool, default=options.pop("default", False), **options)
