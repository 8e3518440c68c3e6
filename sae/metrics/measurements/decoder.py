"""Overlap of the decoder rows of different latents."""

from __future__ import annotations

from dataclasses import replace

from sae.autoencoder import SAE
from sae.metrics.decoder_directions import c_dec_chance, c_dec_of_latents
from sae.metrics.interval import POSITIVE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score


def measure_decoder(sae: SAE) -> dict[str, Score]:
    """Return the mean absolute cosine between decoder rows, with its interval.

    c_dec is a mean over pairs of latents, so one latent moves it by twice as much as that latent's
    own mean suggests.
    """
    means = c_dec_of_latents(sae.W_dec)
    score = mean_score(2 * means - means.mean(), bounds=POSITIVE)
    return {"c_dec": replace(score, chance=c_dec_chance(sae.d_out))}


MEASUREMENT = Measurement(
    compute=measure_decoder,
    needs=("sae",),
    section="Latents",
    metrics=(
        Metric(
            "c_dec",
            "c_dec, mean |cosine|",
            "Mean absolute cosine between two decoder rows. Over a sweep of L0 it is least near "
            "the right L0.",
            "lower",
        ),
    ),
)
