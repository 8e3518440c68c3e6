"""Feature absorption in worlds with a known hierarchy."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.metrics.absorption import absorption_of_parents
from sae.metrics.code_matching import CodeMatching
from sae.metrics.interval import SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score
from sae_kernels.codes import Codes


def measure_absorption(
    code_pair: tuple[Codes, Codes],
    matching: CodeMatching,
    x: Tensor,
    sae: SAE,
    true_directions: Tensor,
    parents: Tensor,
) -> dict[str, Score]:
    """Return full and partial absorption, means over the features that are parents of others."""
    true_codes, codes = code_pair
    latent_of = torch.full((len(true_directions),), -1)
    latent_of[matching.features] = matching.latents
    absorbed = absorption_of_parents(
        true_codes,
        codes,
        x[: true_codes.batch].cpu(),
        sae.W_dec,
        true_directions,
        parents,
        latent_of,
    ).values()
    mean = lambda values: torch.tensor([v.mean() for v in values], dtype=torch.float64)
    return {
        "absorption_full": mean_score(mean(parent.full for parent in absorbed), bounds=SHARE),
        "absorption_fraction": mean_score(
            mean(parent.fraction for parent in absorbed), bounds=SHARE
        ),
    }


MEASUREMENT = Measurement(
    compute=measure_absorption,
    needs=("code_pair", "matching", "x", "sae", "true_directions", "parents"),
    section="Ground truth",
    metrics=(
        Metric(
            "absorption_full",
            "absorption, full",
            "Share of a parent feature's activations at which its latent is silent and another "
            "latent writes it.",
            "lower",
            ".3f",
        ),
        Metric(
            "absorption_fraction",
            "absorption, partial",
            "Mean share of a parent feature that other latents write.",
            "lower",
            ".3f",
            detail=True,
        ),
    ),
)
