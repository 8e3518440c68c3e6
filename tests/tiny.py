"""Tiny settings that tests share: runs on a world, and every rule, site and loss term.

A new sparsity rule, site or loss term needs one line here, in `RULES`, `all_sites` or `LOSSES`;
tests/test_tiny.py fails until it has one. It is then tested wherever these tables are used.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from sae import SAE
from sae.autoencoder.losses import (
    FVU,
    L0,
    L1,
    MSE,
    AuxK,
    EveryPrefix,
    GateReconstruction,
    LossTerm,
    Matryoshka,
    MultiK,
    PreActs,
)
from sae.autoencoder.sites import (
    Autoencoder,
    Crosscoder,
    CrossLayerTranscoder,
    Site,
    SkipTranscoder,
    Transcoder,
)
from sae.autoencoder.sparsity import Sparsity
from sae.training import Learner, OptimConfig
from sae_kernels import reference

# Settings of runs

WORLD_RUN = {
    "model": {"sae": {"class_path": "TopK", "init_args": {"d_sae": 64, "k": 4}}},
    "data": {
        "source": {
            "class_path": "SparseSuperposition",
            "init_args": {"d_in": 16, "n_features": 64, "mean_active": 3.0},
        },
        "batch_size": 64,
        "block_batches": 4,
        "held_out_tokens": 256,
    },
    "trainer": {"max_steps": 12, "log_every_n_steps": 4, "accelerator": "cpu"},
}


# The source of a smaller world, for flags.
WORLD_SOURCE = {
    "data.source": "SparseSuperposition",
    "data.source.d_in": 8,
    "data.source.n_features": 16,
    "data.source.mean_active": 2.0,
}


def run_settings(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run of 12 steps on a world, with changes by dotted name.

    Settings of a class are named as on the command line: `model.sae.k`, `data.source.d_in`.
    """
    settings = copy.deepcopy(WORLD_RUN)
    for name, value in changes.items():
        *groups, last = name.split(".")
        target: dict[str, Any] = settings
        for group in groups:
            target = target.setdefault(group, {})
            target = target.get("init_args", target)
        target[last] = value
    return settings


def write_settings(folder: Path, settings: Mapping[str, Any], name: str = "c.yaml") -> Path:
    """Write settings as a config file in `folder`, which is made if missing; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    return file


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Return settings by dotted name as flags of the command line: `--model.sae.k=4`."""
    return [f"--{name}={value}" for name, value in settings.items()]


def read_csv(file: Path, *, clock: bool = False) -> list[dict[str, str]]:
    """Return the rows of a table, by default without the columns that depend on the clock."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    timed = () if clock else ("seconds", "tokens_per_second")
    return [{name: cell for name, cell in row.items() if name not in timed} for row in rows]


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv without the columns that depend on the clock."""
    return read_csv(run / "metrics.csv")


def assert_same_tensors(one: SAE, other: SAE) -> None:
    """Check that two SAEs have the same parameters and buffers to the last bit."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def assert_same_state(a: Any, b: Any, where: str = "state") -> None:
    """Check that two nested states, such as checkpoints, are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


# Sparsity rules, sites and loss terms


def package_classes(family: type[Any]) -> dict[str, type[Any]]:
    """Return the registered classes by name, without those that tests or benchmarks have added."""
    return {name: cls for name, cls in family.registry.items() if cls.__module__.startswith("sae.")}


@dataclass(frozen=True)
class RuleSettings:
    """The arguments that a sparsity rule needs, and its penalties.

    Args:
        arguments: Arguments besides d_sae.
        penalties: Classes of the loss terms without which the rule is not sparse.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    penalties: tuple[type[LossTerm], ...] = ()


RULES = {
    "AbsTopK": RuleSettings({"k": 4}),
    "BatchTopK": RuleSettings({"k": 4}),
    "Gated": RuleSettings(penalties=(L1, GateReconstruction)),
    "GroupMax": RuleSettings({"k": 4}),
    "JumpReLU": RuleSettings(penalties=(L0,)),
    "MatchingPursuit": RuleSettings({"k": 4}),
    "ReLU": RuleSettings(penalties=(L1,)),
    "TopK": RuleSettings({"k": 4}),
    "Unrolled": RuleSettings(penalties=(L1,)),
}

# Loss terms that give an SAE something to reconstruct, each combined with every rule and site.
# Penalties are in `RULES`. EndToEnd needs a language model: tests/autoencoder/test_end_to_end.py.
LOSSES: dict[str, list[LossTerm]] = {
    "MSE": [MSE(coefficient=0.1)],
    "Matryoshka": [Matryoshka()],
    "Matryoshka-random": [Matryoshka(random=3)],
    "EveryPrefix": [EveryPrefix()],
    "MultiK": [FVU(), MultiK(factor=2)],
    "PreActs": [FVU(), PreActs(coefficient=0.1)],
    "AuxK": [FVU(), AuxK()],
}


def tiny_rule(name: str, d_sae: int, k: int = 4, **arguments: Any) -> Sparsity:
    """Return the rule registered as `name`; `k` is for rules that take it."""
    defaults = RULES[name].arguments
    if "k" in defaults:
        defaults = {**defaults, "k": k}
    return Sparsity.registry[name](d_sae=d_sae, **{**defaults, **arguments})


def all_rules(d_sae: int, k: int = 4, **arguments: Mapping[str, Any]) -> dict[str, Sparsity]:
    """Return every rule of the package by name, with further arguments by name of the rule."""
    return {
        name: tiny_rule(name, d_sae, **{"k": k, **arguments.get(name, {})})
        for name in package_classes(Sparsity)
    }


def penalties(rule: Sparsity, **settings: Any) -> list[LossTerm]:
    """Return the loss terms without which `rule` is not sparse; `settings` are of L0 and L1."""
    classes = RULES[type(rule).__name__].penalties
    return [cls(**settings) if cls in (L0, L1) else cls() for cls in classes]


def all_sites(reads: tuple[str, str], predicts: tuple[str, str]) -> dict[str, Site]:
    """Return every site of the package by name, on four hooks; `reads` have the same width."""
    read, predict = reads[0], predicts[0]
    return {
        "Autoencoder": Autoencoder(hook=read),
        "Transcoder": Transcoder(read=read, predict=predict),
        "SkipTranscoder": SkipTranscoder(read=read, predict=predict),
        "Crosscoder": Crosscoder(read=tuple(sorted((*reads, predict)))),
        "CrossLayerTranscoder": CrossLayerTranscoder(read=reads, predict=predicts),
    }


# SAEs and learners


def tiny_sae(
    rule: Sparsity,
    site: Site,
    widths: Mapping[str, int],
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float64,
) -> SAE:
    """Return a new SAE at `site` for hooks of the given widths."""
    bound = site.bind({hook: widths[hook] for hook in site.hooks})
    return SAE(bound.d_in, rule, site=bound, d_out=bound.d_out, seed=seed, dtype=dtype)


def tiny_learner(
    sae: SAE,
    terms: Sequence[LossTerm],
    optim: OptimConfig | None = None,
    *,
    total_steps: int = 20,
    dead_after: int = 10**6,
    refresh_steps: int = 1,
    **settings: Any,
) -> Learner:
    """Return a learner of 20 steps, few enough that no latent counts as dead by default."""
    return Learner(
        sae,
        terms,
        optim or OptimConfig(lr=1e-2),
        total_steps=total_steps,
        dead_after=dead_after,
        refresh_steps=refresh_steps,
        **settings,
    )


def random_batch(
    number: int,
    size: int = 32,
    dtype: torch.dtype = torch.float64,
    *,
    width: int = 6,
    hooks: str = "abcd",
) -> dict[str, Tensor]:
    """Return normal activations with mean 0.5 by hook, drawn with `number` as the seed."""
    generator = torch.Generator().manual_seed(number)
    draw = lambda: torch.randn(size, width, generator=generator, dtype=torch.float64) + 0.5
    return {hook: draw().to(dtype) for hook in hooks}


def dense_gradients(sae: SAE) -> dict[str, Tensor]:
    """Return the gradient of every parameter in its own shape; 0 where it has none.

    Gradients that exist only for the rows of active latents are included.
    """
    gradients = {}
    for name, parameter in sae.named_parameters():
        by_latent = (lambda t: t.t()) if name == "W_enc" else (lambda t: t)
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        rows = getattr(parameter, "row_grads", None)
        dense = reference.dense_gradient(by_latent(parameter).shape, by_latent(grad), rows)
        gradients[name] = by_latent(dense)
    return gradients
