"""Bounds of compressed sensing on the number of active latents."""

from __future__ import annotations

from sae.autoencoder import SAE
from sae.metrics.capacity import capacity
from sae.metrics.firing import Firing
from sae.metrics.metric import Measurement, Metric


def measure_capacity(ungrouped_sae: SAE, firing: Firing) -> dict[str, float]:
    """Return the dimensions that the SAE's L0 needs, and the largest L0 that d_in allows for."""
    sae = ungrouped_sae
    bound = capacity(sae.d_in, sae.d_sae, firing.l0(), non_negative=not sae.sparsity.signed)
    return {"delta": bound.delta, "margin": bound.margin, "largest_k": bound.largest_k}


MEASUREMENT = Measurement(
    compute=measure_capacity,
    needs=("ungrouped_sae", "firing"),
    section="Capacity",
    metrics=(
        Metric(
            "delta",
            "dimensions L0 needs",
            "Dimensions that compressed sensing needs to recover codes of this L0.",
            format=".1f",
        ),
        Metric(
            "margin",
            "dimensions, have / need",
            "Dimensions of the activations over the dimensions that this L0 needs. Below 1 the "
            "codes cannot be right.",
            "higher",
            ".2f",
            detail=True,
        ),
        Metric(
            "largest_k",
            "largest possible L0",
            "The largest L0 at which codes of this width and dimension can be recovered.",
            format=".0f",
        ),
    ),
)
