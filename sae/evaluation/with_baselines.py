"""Evaluate an SAE beside its baselines, and find what limits it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from sae.activations import ActivationData
from sae.autoencoder import SAE
from sae.evaluation.baseline_sources import GAUSSIAN
from sae.evaluation.baselines import list_baselines, train_baselines
from sae.evaluation.diagnosis import Finding, diagnose
from sae.evaluation.measure import measure
from sae.evaluation.similarity import SampleSimilarity
from sae.metrics.decoder_directions import dictionary_mcc_signed
from sae.metrics.interval import SHARE
from sae.metrics.score import mean_score
from sae.training.train_config import TrainConfig


@dataclass(frozen=True)
class Evaluation:
    """The metrics of an SAE and of its baselines, and what they show.

    Attributes:
        metrics: metrics of the SAE by name, see `sae.evaluation.measure.measure`.
        baselines: metrics of each baseline by its name.
        headings: heading of each baseline's column by its name.
        findings: see `sae.evaluation.diagnosis`.
        similarity: what the interpretability metrics compare samples by, in words.
    """

    metrics: dict[str, float | int]
    baselines: dict[str, dict[str, float | int]]
    headings: dict[str, str]
    findings: list[Finding]
    similarity: str

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data; a baseline's metrics are `<baseline>.<name>`."""
        findings = [{"part": finding.part, "says": finding.text} for finding in self.findings]
        return {**_flat(self.metrics, self.baselines), "findings": findings}


def evaluate_with_baselines(
    sae: SAE,
    config: TrainConfig,
    data: ActivationData,
    steps: int,
    *,
    max_tokens: int,
    dead_fraction: float | None = None,
    baselines: bool = True,
) -> Evaluation:
    """Measure an SAE, train and measure its baselines, and diagnose it.

    Args:
        sae: the SAE, on the device to use.
        config: how it was trained.
        data: what it was trained on, with its source set up.
        steps: training steps it took; baselines take as many.
        max_tokens: held-out activations to read.
        dead_fraction: share of its latents that were dead when training ended, if known.
        baselines: whether to train baselines. Each takes about as long as the SAE did.
    """
    similarity = SampleSimilarity.from_source(data.source)
    metrics = measure(
        sae, data.source, max_tokens=max_tokens, seed=data.seed, similarity=similarity
    )
    if dead_fraction is not None:
        dead = torch.arange(sae.d_sae) < round(dead_fraction * sae.d_sae)
        metrics |= mean_score(dead, bounds=SHARE).entries("dead_fraction")
    trained = []
    if baselines and config.full_contexts:
        sys.stdout.write(
            "no baselines: losses that run the model need full contexts, which baselines lack\n"
        )
    elif baselines:
        trained = list_baselines(config, data.source, data.batch_size * data.block_batches)
        names = ", ".join(baseline.name for baseline in trained)
        sys.stdout.write(f"training {len(trained)} baselines: {names}\n")
        sys.stdout.flush()
        train_baselines(trained, data, steps, sae.W_dec.device)
    baseline_metrics, features = {}, data.source.known_features()
    for baseline in trained:
        assert baseline.sae is not None
        baseline_metrics[baseline.name] = measure(
            baseline.sae,
            baseline.source,
            max_tokens=max_tokens,
            seed=data.seed,
            similarity=similarity,
            downstream=False,
        )
        if features is not None and baseline.name == GAUSSIAN:
            # Noise has no true codes, but directions learned from it can resemble true features.
            mcc = dictionary_mcc_signed(baseline.sae.W_dec, features.truth)
            baseline_metrics[GAUSSIAN]["dictionary_mcc_signed"] = mcc
    return Evaluation(
        metrics=metrics,
        baselines=baseline_metrics,
        headings={baseline.name: baseline.heading for baseline in trained},
        findings=diagnose(_flat(metrics, baseline_metrics)),
        similarity=similarity.description,
    )


def _flat(metrics: dict[str, Any], baselines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return all metrics in one dictionary; a baseline's are `<baseline>.<name>`."""
    flat = dict(metrics)
    for name, values in baselines.items():
        flat |= {f"{name}.{key}": value for key, value in values.items()}
    return flat
