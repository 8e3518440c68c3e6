"""Agreement of decoder rows with the true directions of a world."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sae.autoencoder import SAE
from sae.metrics.decoder_directions import (
    dictionary_chance,
    dictionary_mcc_nulls,
    matched_cosines_signed,
    mmcs,
    mmcs_uniqueness,
    signed_cosines,
    uniqueness_of_latents,
)
from sae.metrics.interval import COSINE, SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score


def measure_dictionary(
    sae: SAE, true_directions: Tensor, training_samples: Tensor
) -> dict[str, Score | float]:
    """Return MCC and MMCS of the decoder against true directions, and their chance levels.

    Each chance level is the larger one of random directions and of training samples as latents.

    Args:
        sae: the SAE.
        true_directions: [features, d_out].
        training_samples: training activations [n, d_out].
    """
    W_dec, truth = sae.W_dec, true_directions

    def chance(score: Callable[[Tensor, Tensor], float]) -> float:
        return max(
            dictionary_chance(score, truth, sae.d_sae, samples=samples)
            for samples in (None, training_samples)
        )

    mcc_nulls = dictionary_mcc_nulls(truth, sae.d_sae, training_samples)
    mcc_chance = mcc_nulls.pop("dictionary_mcc_signed_chance")
    return {
        "dictionary_mcc_signed": mean_score(
            matched_cosines_signed(W_dec, truth), bounds=COSINE, chance=mcc_chance
        ),
        **mcc_nulls,
        "mmcs": mean_score(
            signed_cosines(W_dec, truth).amax(1), bounds=COSINE, chance=chance(mmcs)
        ),
        "mmcs_uniqueness": mean_score(
            uniqueness_of_latents(W_dec, truth), bounds=SHARE, chance=chance(mmcs_uniqueness)
        ),
    }


MEASUREMENT = Measurement(
    compute=measure_dictionary,
    needs=("sae", "true_directions", "training_samples"),
    section="Ground truth",
    metrics=(
        Metric(
            "dictionary_mcc_signed",
            "dictionary MCC",
            "Mean cosine between each true feature and the latent matched to it one to one. Its "
            "chance level is the larger of the two below.",
            "higher",
            heading="MCC",
        ),
        Metric(
            "dictionary_mcc_random",
            "MCC, random directions",
            "Null: dictionary MCC of as many random directions as latents.",
            detail=True,
        ),
        Metric(
            "dictionary_mcc_samples",
            "MCC, samples as latents",
            "Null: dictionary MCC of as many training samples as latents, centred. Samples "
            "resemble features if few features are active.",
            detail=True,
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
