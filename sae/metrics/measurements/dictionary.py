"""Agreement of decoder rows with the true directions of a world."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sae.autoencoder import SAE
from sae.metrics.decoder_directions import (
    dictionary_chance,
    dictionary_mcc_chance,
    matched_cosines_signed,
    mmcs,
    mmcs_uniqueness,
    signed_cosines,
    uniqueness_of_latents,
)
from sae.metrics.interval import COSINE, SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score


def measure_dictionary(sae: SAE, true_directions: Tensor) -> dict[str, Score]:
    """Return MCC and MMCS of the decoder against true directions [features, d_in]."""
    W_dec, truth = sae.W_dec, true_directions
    chance = partial(dictionary_chance, truth=truth, d_sae=sae.d_sae)
    return {
        "dictionary_mcc_signed": mean_score(
            matched_cosines_signed(W_dec, truth),
            bounds=COSINE,
            chance=dictionary_mcc_chance(truth, sae.d_sae),
        ),
        "mmcs": mean_score(
            signed_cosines(W_dec, truth).amax(1), bounds=COSINE, chance=chance(mmcs)
        ),
        "mmcs_uniqueness": mean_score(
            uniqueness_of_latents(W_dec, truth), bounds=SHARE, chance=chance(mmcs_uniqueness)
        ),
    }


MEASUREMENT = Measurement(
    compute=measure_dictionary,
    needs=("sae", "true_directions"),
    section="Ground truth",
    metrics=(
        Metric(
            "dictionary_mcc_signed",
            "dictionary MCC",
            "Mean cosine between each true feature and the latent matched to it one to one.",
            "higher",
            heading="MCC",
        ),
        Metric(
            "mmcs",
            "MMCS",
            "Mean over true features of the largest cosine with any latent.",
            "higher",
            ".3f",
        ),
        Metric(
            "mmcs_uniqueness",
            "MMCS uniqueness",
            "Share of latents left if latents with the same nearest feature are counted once.",
            "higher",
            ".3f",
            detail=True,
        ),
    ),
)
