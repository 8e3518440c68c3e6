"""The exception for invalid user input."""

from __future__ import annotations

import re


class UserError(ValueError):
    """Invalid user input: one line that names the setting, its value, what is wrong, what to do.

    A message names a setting by its full path in a config file, such as `model.sae.k=0`, and a flag
    as the command line has it, such as `--overwrite`. `str(error)` shows the names that the same
    settings have as Python arguments (`k=0`, `overwrite=True`); the command line prints
    `error.message`, as it was written, and exits with code 2 without a traceback.
    """

    @property
    def message(self) -> str:
        """The message with names as the command line and config files have them."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return _python_names(self.message)


# Applied in this order. Only the start of a dotted name is replaced, so that class paths and file
# names such as `sae.worlds.model` stay as they are.
_START = r"(?<![\w./'\"-])"
_PYTHON_NAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (_START + r"model\.(?:sae|site)\.(?=\w)", ""),
        (_START + r"model\.optim\.lr\b", "lr"),
        (_START + r"model\.losses (?=[A-Z])", ""),
        (_START + r"model\.(?=\w)", ""),
        (_START + r"data\.source\.text\b", "text"),
        (_START + r"data\.(?:source\.)?(?=[a-z])", ""),
        (_START + r"trainer\.max_steps\b", "steps"),
        (_START + r"trainer\.val_check_interval\b", "validate_every"),
        (_START + r"trainer\.log_every_n_steps\b", "log_every"),
        (_START + r"trainer\.(?=[a-z])", ""),
        (r"`(?:fit )?--resume [^`]+`", "resume=True"),
        (_START + r"--resume [^\s:,;]+", "resume=True"),
        (r"--overwrite(?: true)?(?: it\b)?", "pass overwrite=True"),
        (r"--(name|runs|config|seed)\b", r"\1="),
        (r"=true\b", "=True"),
        (r"=false\b", "=False"),
        (r"=null\b", "=None"),
    )
]


def _python_names(message: str) -> str:
    for pattern, replacement in _PYTHON_NAMES:
        message = pattern.sub(replacement, message)
    return message
