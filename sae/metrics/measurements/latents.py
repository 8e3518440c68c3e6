"""Number of latents that fire on a token, and shares of latents by how often they fire."""

from __future__ import annotations

from collections.abc import Mapping

from sae.metrics.firing import Firing
from sae.metrics.interval import SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score

DENSE = 0.1
"""A latent that fires on a larger share of tokens than this counts as dense."""


def measure_latents(row_scores: Mapping[str, Score], firing: Firing) -> dict[str, Score]:
    """Return L0 and the shares of latents that never fire and that fire on over 10% of tokens."""
    return {
        "l0": row_scores["l0"],
        "never_fired_fraction": mean_score(firing.counts == 0, bounds=SHARE),
        "dense_fraction": mean_score(firing.density() > DENSE, bounds=SHARE),
    }


MEASUREMENT = Measurement(
    compute=measure_latents,
    needs=("row_scores", "firing"),
    section="Latents",
    metrics=(
        Metric(
            "l0",
            "L0",
            "Mean number of latents that fire on a token.",
            format=".1f",
            unit="latents per token",
        ),
        Metric(
            "never_fired_fraction",
            "never fired",
            "Share of latents that fired on no held-out token; larger with fewer tokens.",
            "lower",
            ".2%",
        ),
        Metric(
            "dense_fraction",
            "dense latents",
            "Share of latents that fire on more than 10% of tokens.",
            "lower",
            ".2%",
        ),
    ),
)
