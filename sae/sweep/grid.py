"""Turn `--grid`, `--seeds` and `--random` into the members of a sweep."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

import yaml

from sae.errors import UserError

SEED = "model.seed"
_FOLDER_NAME = re.compile(r"[\w.+-]+")


def parse_axes(flags: Sequence[str], seeds: int = 1, first: int = 0) -> dict[str, list[Any]]:
    """Return the values of each setting that is swept over.

    Args:
        flags: One `KEY=V1,V2,...` for each setting. Commas inside brackets separate nothing:
            `model.losses=[FVU],[MSE, AuxK]` has two values.
        seeds: Number of seeds; above 1 they are one more axis.
        first: The first of these seeds.

    Raises:
        UserError: If there are no axes, or if one has no values, a value twice, is given twice or
            is not a setting under `model`.
    """
    axes: dict[str, list[Any]] = {}
    for flag in flags:
        key, equals, text = flag.partition("=")
        texts = _split_values(text)
        if not equals or not all(texts):
            raise UserError(f"--grid {flag}; give KEY=V1,V2,..., such as model.sae.k=16,32,64")
        if key in axes:
            raise UserError(f"--grid {key} is given twice; put all its values into one --grid")
        if len(set(texts)) < len(texts):
            raise UserError(f"--grid {flag} has a value twice; remove one of them")
        if not key.startswith("model."):
            raise UserError(
                f"--grid {key}: members of a sweep train on one stream, so they can differ only in "
                f"settings under model; start one run for each value of {key} instead"
            )
        axes[key] = [_parse_value(text) for text in texts]
    if seeds > 1:
        if SEED in axes:
            raise UserError(f"--seeds {seeds} and --grid {SEED} are mutually exclusive; give one")
        axes[SEED] = list(range(first, first + seeds))
    if not axes:
        raise UserError("sweep needs --grid KEY=V1,V2,..., or --seeds N")
    return axes


def expand_members(
    axes: dict[str, list[Any]], *, at_random: int | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return the members of a sweep: name to {setting: value}.

    Args:
        axes: The values of each setting.
        at_random: Number of combinations to draw without replacement; all by default. A
            combination is drawn with all its seeds, so this counts those of the other axes.
        seed: Seed of that draw.
    """
    others = {key: values for key, values in axes.items() if key != SEED}
    combinations = [
        dict(zip(others, values, strict=True)) for values in itertools.product(*others.values())
    ]
    if at_random is not None and at_random < len(combinations):
        drawn = random.Random(seed).sample(range(len(combinations)), at_random)
        combinations = [combinations[number] for number in sorted(drawn)]
    if SEED in axes:
        combinations = [
            {**combination, SEED: value} for combination in combinations for value in axes[SEED]
        ]
    short = _short_keys(list(axes))
    members: dict[str, dict[str, Any]] = {}
    for number, settings in enumerate(combinations):
        name = ",".join(f"{short[key]}={_show(value)}" for key, value in settings.items())
        if not all(_FOLDER_NAME.fullmatch(_show(value)) for value in settings.values()):
            name = f"member-{number}"  # a list of loss terms cannot be the name of a folder
        members[name] = settings
    return members


def _split_values(text: str) -> list[str]:
    """Split at the commas that are outside all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _parse_value(text: str) -> Any:
    """Parse a value as YAML, but take 1e-4, a string in YAML 1.1, for a number."""
    try:
        return float(text) if re.fullmatch(r"[+-]?\d+e[+-]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise UserError(f"--grid: {text!r} is not valid YAML: {message}") from error


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short_keys(keys: list[str]) -> dict[str, str]:
    """Return for each key the fewest of its last words that no other key ends in."""
    short = {}
    for key in keys:
        words = key.split(".")
        for count in range(1, len(words) + 1):
            end = words[-count:]
            if sum(other.split(".")[-count:] == end for other in keys) == 1:
                break
        short[key] = ".".join(end)
    return short
