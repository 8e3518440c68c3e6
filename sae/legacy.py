"""Read files written before a rename: tables of old names, applied where files are loaded.

Rename anything that ends up in a config, an SAE folder or a checkpoint, and add one entry here.
Nothing else in the package knows an old name. `tests/legacy` loads files that the old code wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

CLASSES = {
    "Autoencode": "Autoencoder",
    "CrossLayer": "CrossLayerTranscoder",
    "Crosscode": "Crosscoder",
    "SkipTranscode": "SkipTranscoder",
    "Transcode": "Transcoder",
}
"""Class names in configs and in `sae.json`, without their module."""

MODULES = {
    "sae.autoencoder.objective": "sae.autoencoder.losses",
    "sae.autoencoder.sites.autoencode": "sae.autoencoder.sites.autoencoder",
    "sae.autoencoder.sites.crosscode": "sae.autoencoder.sites.crosscoder",
    "sae.autoencoder.sites.transcode": "sae.autoencoder.sites.transcoder",
    "sae.training.config": "sae.training.optim_config",
    "sae.training.sparse_coding": "sae.training.dictionary_learning.config",
    "sae.lightning.recipe": "sae.training.train_config",
}
"""Modules of class paths in configs; a module's submodules move with it."""

KEYS = {
    "model.objective": "model.losses",
    "model.losses.init_args.most": "model.losses.init_args.max_latents",  # of PreActs
}
"""Settings of a config, as dotted keys; the settings below one move with it."""

CHECKPOINT_KEYS = {
    "learner.meter": "learner.running_means",
    "coder.meter": "coder.running_means",
    "dead.silent": "dead.dead_list",
    "last_read": "last_metrics",
}
"""Keys of a checkpoint's dicts, at any depth. A run of dotted parts matches inside a longer key:
`learner.meter` also renames `members.0.learner.meter.sums`."""


def class_name(name: str) -> str:
    """Return today's name of a class, given bare or with its module."""
    module, dot, bare = name.rpartition(".")
    if dot and not module.startswith("sae."):
        return name  # a class of the user's, which may be called anything
    return _moved(module, MODULES) + dot + CLASSES.get(bare, bare)


def setting(key: str) -> str:
    """Return today's dotted key of a setting."""
    return _moved(key, KEYS)


def flag(argument: str) -> str:
    """Return a command-line argument with today's key, if it is `--KEY` or `--KEY=VALUE`."""
    if not argument.startswith("--"):
        return argument
    key, equals, value = argument[2:].partition("=")
    return f"--{setting(key)}{equals}{value}"


def config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run with today's keys and class names."""
    return _settings(settings, "")


def config_text(text: str) -> str:
    """Return the YAML text of a run's settings with today's names; the same text if none is old."""
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # for the parser to report
    if not isinstance(settings, dict) or (renamed := config(settings)) == settings:
        return text
    return yaml.safe_dump(renamed, sort_keys=False)


def checkpoint(saved: Any) -> Any:
    """Rename the keys of a checkpoint and of all dicts in it, in place; return the checkpoint."""
    if isinstance(saved, dict):
        for key in list(saved):
            saved[_checkpoint_key(key)] = checkpoint(saved.pop(key))
    elif isinstance(saved, list):
        for value in saved:
            checkpoint(value)
    return saved


def _settings(settings: Mapping[str, Any], parent: str) -> dict[str, Any]:
    renamed = {}
    for name, value in settings.items():
        key = setting(f"{parent}{name}")
        short = key.removeprefix(parent)
        if key == "members" and isinstance(value, dict):
            # Each member has settings of its own, under full dotted keys.
            value = {n: _settings(v, "") if isinstance(v, dict) else v for n, v in value.items()}
        else:
            value = _value(value, key)
        renamed[short] = value
    return renamed


def _value(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return _settings(value, f"{key}.")
    if isinstance(value, list):
        return [_value(item, key) for item in value]
    # A class may also stand without `class_path`, such as `site: Crosscoder`.
    names_class = key in ("model.sae", "model.site", "model.losses") or key.endswith("class_path")
    return class_name(value) if isinstance(value, str) and names_class else value


def _moved(dotted: str, table: Mapping[str, str]) -> str:
    """Return `dotted` with the longest part at its start that the table has replaced."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if (start := ".".join(parts[:end])) in table:
            return ".".join([table[start], *parts[end:]])
    return dotted


def _checkpoint_key(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    for old, new in CHECKPOINT_KEYS.items():
        key = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, key)
    return key
