"""Error, direction and length of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score


def measure_reconstruction(row_scores: Mapping[str, Score]) -> dict[str, Score]:
    """Return the metrics that are ratios of sums over rows; the chance level of FVU is the mean's.

    Args:
        row_scores: scores over all rows, with intervals over documents, see `Samples.scores`.
    """
    names = ("fvu", "cosine", "shrinkage", "relative_reconstruction_bias")
    scores = {name: row_scores[name] for name in names}
    return scores | {"fvu": replace(scores["fvu"], chance=1.0)}


MEASUREMENT = Measurement(
    compute=measure_reconstruction,
    needs=("row_scores",),
    section="Reconstruction",
    metrics=(
        Metric(
            "fvu",
            "FVU",
            "Fraction of variance unexplained: squared error over variance. 0 is a perfect copy, "
            "1 is what the mean alone gives.",
            "lower",
        ),
        Metric(
            "cosine",
            "cosine",
            "Mean cosine between an activation and its reconstruction.",
            "higher",
        ),
        Metric(
            "shrinkage",
            "norm ratio",
            "Mean norm of reconstructions over mean norm of activations. Below 1, reconstructions "
            "are too short.",
            "one",
        ),
        Metric(
            "relative_reconstruction_bias",
            "reconstruction bias",
            "Inverse of the factor that would minimise the error if it multiplied every "
            "reconstruction. Below 1, reconstructions are too short.",
            "one",
        ),
    ),
)
