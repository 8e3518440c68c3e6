"""Train the baseline SAEs that `evaluate` puts beside a run, on as many activations as the run."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from sae.activations import ActivationData, Source
from sae.autoencoder import SAE
from sae.evaluation.baseline_sources import (
    FROZEN_DECODER,
    GAUSSIAN,
    RANDOM_WEIGHTS,
    MatchedGaussian,
    frozen_decoder,
)
from sae.progress import progress
from sae.training import loop
from sae.training.train_config import TrainConfig


@dataclass
class Baseline:
    """An SAE trained with the run's settings except for one of them, or on other activations.

    Attributes:
        name: a name of `sae.evaluation.baseline_sources`, or `fewer` or `more` for half and twice
            the L0.
        heading: heading of its column in a table.
        config: how it is trained.
        source: what it is trained and evaluated on.
        sae: the SAE, once it is trained.
    """

    name: str
    heading: str
    config: TrainConfig
    source: Source
    sae: SAE | None = None


def list_baselines(config: TrainConfig, source: Source, rows: int) -> list[Baseline]:
    """Return the baselines that apply to a run, not trained.

    Args:
        config: how the run was trained.
        source: the source of the run.
        rows: number of activations in one of its blocks.
    """
    baselines = []
    if config.sparse_coding is None:  # sparse coding learns nothing but the decoder
        frozen = _changed(config, optim=frozen_decoder(config.optim), resample_every=None)
        baselines.append(Baseline(FROZEN_DECODER, "decoder\nfrozen", frozen, source))
    gaussian = MatchedGaussian(source, rows=rows, seed=config.seed)
    baselines.append(Baseline(GAUSSIAN, "Gaussian\nnoise", _changed(config), gaussian))
    untrained = source.random_weights_twin()
    if untrained is not None:
        baselines.append(Baseline(RANDOM_WEIGHTS, "untrained\nmodel", _changed(config), untrained))
    for name, heading, factor in (("fewer", "half\nthe L0", 0.5), ("more", "twice\nthe L0", 2.0)):
        other = _with_scaled_l0(config, factor)
        if other is not None:
            baselines.append(Baseline(name, heading, other, source))
    return baselines


def train_baselines(
    baselines: list[Baseline], data: ActivationData, steps: int, device: torch.device | str
) -> None:
    """Train every baseline and set its `sae`. Those with the same source share one stream.

    Args:
        baselines: see `list_baselines`.
        data: the activations of the run.
        steps: training steps of the run.
        device: device to train on.
    """
    by_source: dict[int, list[Baseline]] = {}
    for baseline in baselines:
        by_source.setdefault(id(baseline.source), []).append(baseline)
    for group in by_source.values():
        names = ", ".join(baseline.heading.replace("\n", " ") for baseline in group)
        with progress(f"training baselines ({names})", steps) as task:
            source = group[0].source
            source.setup(device)
            stream = data.train_stream(steps, source=source)
            learners = [
                baseline.config.build_learner(source.widths, data.batch_size, steps).to(device)
                for baseline in group
            ]
            for step in loop.train(learners, stream, accumulate=data.accumulate):
                task.update(completed=step)
        for baseline, learner in zip(group, learners, strict=True):
            baseline.sae = learner.export()


def _changed(config: TrainConfig, **settings: Any) -> TrainConfig:
    """Return a copy of `config` with other values for some settings."""
    other = copy.copy(config)
    for name, value in settings.items():
        setattr(other, name, value)
    return other


def _with_scaled_l0(config: TrainConfig, factor: float) -> TrainConfig | None:
    """Return the config with `factor` times its k or target L0.

    Returns None if it has neither, if k is annealed, or if k would leave 1 to d_sae / 4.
    """
    rule, terms = config.sparsity, config.losses
    if rule.expected_l0 is not None:
        l0 = round(rule.expected_l0 * factor)
        if not 1 <= l0 <= rule.d_sae // 4 or rule.anneals:
            return None
        scaled = rule.with_l0(l0)
        return None if scaled is None else _changed(config, sparsity=scaled)
    controlled = [term for term in terms if term.controlled]
    if not controlled:
        return None
    (term,) = controlled
    settings: Any = term  # every term is a dataclass, and a controlled one has a target
    other = dataclasses.replace(settings, target_l0=settings.target_l0 * factor)
    return _changed(config, losses=[other if t is term else t for t in terms])
