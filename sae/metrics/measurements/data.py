"""Properties of the activations themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.metrics.capacity import effective_dimension
from sae.metrics.metric import Measurement, Metric


def measure_data(ungrouped_sae: SAE, x: Tensor) -> dict[str, float]:
    """Return the participation ratio of the covariance of the activations x [n, d_in].

    The SAE is not used; the metric is left out where its latents fall into groups, because then
    each group reads other activations.
    """
    return {"effective_dimension": effective_dimension(torch.cov(x.double().T))}


MEASUREMENT = Measurement(
    compute=measure_data,
    needs=("ungrouped_sae", "x"),
    section="Data",
    metrics=(
        Metric(
            "effective_dimension",
            "effective dimension",
            "Participation ratio of the covariance of the activations: d_in if all directions "
            "vary alike.",
            format=".1f",
        ),
    ),
)
