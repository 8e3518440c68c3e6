"""Interpretability tasks answered by a similarity of samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from sae.metrics.code_matching import samples_matrix
from sae.metrics.interpretability import (
    Similarity,
    intruder_detection,
    machine_interpretability,
    random_relu_projections,
)
from sae.metrics.interval import SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score
from sae_kernels.codes import Codes

LATENTS = 100
REFERENCES, EXAMPLES, QUANTILE = 9, 4, 0.25


def measure_interpretability(codes: Codes, similarity: Similarity, x: Tensor) -> dict[str, Score]:
    """Return task accuracies, means over up to `LATENTS` latents drawn with a fixed seed.

    Only latents that fire often enough for the tasks are drawn. The chance level is the accuracy of
    as many random projections of `x`, each of which fires as often as the latent in its place.

    Args:
        codes: codes of n samples.
        similarity: similarity of samples.
        x: the samples [n, d_in].
    """
    fired = np.diff(samples_matrix(codes).tocsc().indptr)
    order = np.random.default_rng(0).permutation(codes.d_sae)

    def draw(min_fired: float) -> list[int]:
        return order[fired[order] >= min_fired][:LATENTS].tolist()

    def score(task: Callable[..., Tensor], latents: list[int], **settings: int) -> Score:
        values = task(codes, similarity, latents=latents, quantile=QUANTILE, **settings)
        random = random_relu_projections(x, fired[latents].tolist())
        chance = task(random, similarity, quantile=QUANTILE, **settings).nanmean().item()
        return mean_score(values[~values.isnan()], bounds=SHARE, chance=chance)

    return {
        "intruder": score(intruder_detection, draw(EXAMPLES / QUANTILE), examples=EXAMPLES),
        "mis": score(
            machine_interpretability, draw((REFERENCES + 1) / QUANTILE), references=REFERENCES
        ),
    }


MEASUREMENT = Measurement(
    compute=measure_interpretability,
    needs=("codes", "similarity", "x"),
    section="Interpretability",
    metrics=(
        Metric(
            "intruder",
            "intruder found",
            "Share of tasks in which the similarity finds the sample on which a latent is "
            "silent among four on which it fires. Guessing gets 0.2; the chance level is that of "
            "random ReLU projections that fire as often.",
            "higher",
            ".3f",
        ),
        Metric(
            "mis",
            "MIS",
            "Machine interpretability score: share of tasks in which the similarity tells a "
            "latent's strongest samples from its weakest. Guessing gets 0.5; the chance level is "
            "that of random ReLU projections that fire as often.",
            "higher",
            ".3f",
        ),
    ),
)
