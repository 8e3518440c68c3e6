"""Interpretability tasks answered by a similarity of samples."""

from __future__ import annotations

import numpy as np

from sae.metrics.code_matching import samples_matrix
from sae.metrics.interpretability import (
    Similarity,
    intruder_detection,
    machine_interpretability,
)
from sae.metrics.interval import SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score
from sae_kernels.codes import Codes

LATENTS = 100
REFERENCES, EXAMPLES, QUANTILE = 9, 4, 0.25


def measure_interpretability(codes: Codes, similarity: Similarity) -> dict[str, Score]:
    """Return task accuracies, means over up to `LATENTS` latents drawn with a fixed seed.

    Only latents that fire often enough for the tasks are drawn.
    """
    fired = np.diff(samples_matrix(codes).tocsc().indptr)
    order = np.random.default_rng(0).permutation(codes.d_sae)

    def draw(min_fired: float) -> list[int]:
        return order[fired[order] >= min_fired][:LATENTS].tolist()

    mis = machine_interpretability(
        codes,
        similarity,
        latents=draw((REFERENCES + 1) / QUANTILE),
        references=REFERENCES,
        quantile=QUANTILE,
    )
    intruder = intruder_detection(
        codes,
        similarity,
        latents=draw(EXAMPLES / QUANTILE),
        examples=EXAMPLES,
        quantile=QUANTILE,
    )
    return {
        "mis": mean_score(mis[~mis.isnan()], bounds=SHARE, chance=0.5),
        "intruder": mean_score(
            intruder[~intruder.isnan()], bounds=SHARE, chance=1 / (EXAMPLES + 1)
        ),
    }


MEASUREMENT = Measurement(
    compute=measure_interpretability,
    needs=("codes", "similarity"),
    section="Interpretability",
    metrics=(
        Metric(
            "mis",
            "MIS",
            "Machine interpretability score: share of tasks in which the similarity tells a "
            "latent's strongest samples from its weakest.",
            "higher",
            ".3f",
        ),
        Metric(
            "intruder",
            "intruder found",
            "Share of tasks in which the similarity finds the sample on which a latent is "
            "silent among samples on which it fires.",
            "higher",
            ".3f",
        ),
    ),
)
