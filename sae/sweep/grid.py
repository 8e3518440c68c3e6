"""From `--grid`, `--seeds` and `--random` to the members of a sweep."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

import yaml

from sae.errors import UserError

SEED = "model.seed"
_FOLDER = re.compile(r"[\w.+-]+")


def axes(flags: Sequence[str], seeds: int = 1, first: int = 0) -> dict[str, list[Any]]:
    """Key to values, from `KEY=V1,V2,...` each; `seeds` seeds from `first` on are one more axis.

    Commas inside brackets do not part: `model.losses=[FVU],[MSE, AuxK]` has two values.
    Raises UserError for an axis without values, or given twice.
    """
    found: dict[str, list[Any]] = {}
    for flag in flags:
        key, equals, text = flag.partition("=")
        texts = _parted(text)
        if not equals or not all(texts):
            raise UserError(f"--grid {flag}; give KEY=V1,V2,..., such as model.sae.k=16,32,64")
        if key in found:
            raise UserError(f"--grid {key} is given twice; put all values into one")
        if len(set(texts)) < len(texts):
            raise UserError(f"--grid {flag} has a value twice; leave one out")
        if not key.startswith("model."):
            raise UserError(
                f"--grid {key}: members share one stream, so they differ in settings under model; "
                f"sweep over {key} in runs of their own"
            )
        found[key] = [_read(text) for text in texts]
    if seeds > 1:
        if SEED in found:
            raise UserError(f"--seeds {seeds} and --grid {SEED} are two ways to say it; give one")
        found[SEED] = list(range(first, first + seeds))
    if not found:
        raise UserError("sweep needs --grid KEY=V1,V2,..., or --seeds N")
    return found


def members(axes: dict[str, list[Any]], *, at_random: int | None = None, seed: int = 0) -> dict:
    """Every combination of the axes, or `at_random` of them drawn without repeats, by name.

    With `at_random` all seeds of a combination are drawn together: it counts combinations of the
    other axes.
    """
    others = {key: values for key, values in axes.items() if key != SEED}
    combinations = [
        dict(zip(others, values, strict=True)) for values in itertools.product(*others.values())
    ]
    if at_random is not None and at_random < len(combinations):
        drawn = random.Random(seed).sample(range(len(combinations)), at_random)
        combinations = [combinations[number] for number in sorted(drawn)]
    if SEED in axes:
        combinations = [{**c, SEED: s} for c in combinations for s in axes[SEED]]
    short = _short(list(axes))
    found: dict[str, dict[str, Any]] = {}
    for number, changes in enumerate(combinations):
        name = ",".join(f"{short[key]}={_shown(value)}" for key, value in changes.items())
        if not all(_FOLDER.fullmatch(_shown(value)) for value in changes.values()):
            name = f"member-{number}"  # a list of terms is no name of a folder
        found[name] = changes
    return found


def _parted(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _read(text: str) -> Any:
    """As YAML would; 1e-4, which to YAML 1.1 is a word, is a number here."""
    try:
        return float(text) if re.fullmatch(r"[+-]?\d+e[+-]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--grid: {text!r} is no YAML: {' '.join(str(error).split())}") from error


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(keys: list[str]) -> dict[str, str]:
    """As few last words of each key as tell it from the others."""
    found = {}
    for key in keys:
        words = key.split(".")
        for count in range(1, len(words) + 1):
            end = words[-count:]
            if sum(other.split(".")[-count:] == end for other in keys) == 1:
                break
        found[key] = ".".join(end)
    return found
