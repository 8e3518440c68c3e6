"""Attribution of wrong codes to inference or to the dictionary."""

from __future__ import annotations

from torch import Tensor

from sae.autoencoder import SAE
from sae.metrics.inference_or_dictionary import inference_or_dictionary
from sae.metrics.interval import COSINE
from sae.metrics.measurements.amortisation import gap_rows
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score
from sae_kernels.codes import Codes


def measure_inference(
    reconstructing_sae: SAE, x: Tensor, true_codes: Codes, true_directions: Tensor
) -> dict[str, Score | float]:
    """Return the code MCC that better inference and the true dictionary would add."""
    rows = gap_rows(reconstructing_sae.d_sae)
    split = inference_or_dictionary(
        reconstructing_sae, x[rows], true_codes.rows(rows), true_directions
    )
    own, best, true = (part.correlations for part in (split.own, split.best, split.true))
    correlations = {"code_mcc_own": own, "code_mcc_best": best, "code_mcc_true": true}
    gains = {"inference_share": best - own, "dictionary_share": true - best, "rest": 1 - true}
    return (
        split.metrics()
        | {name: mean_score(values, bounds=COSINE) for name, values in correlations.items()}
        | {name: mean_score(values) for name, values in gains.items()}
    )


MEASUREMENT = Measurement(
    compute=measure_inference,
    needs=("reconstructing_sae", "x", "true_codes", "true_directions"),
    section="Ground truth",
    metrics=(
        Metric(
            "inference_share",
            "gain of better codes",
            "Code MCC that better inference with the learned dictionary adds.",
            "lower",
            ".3f",
            detail=True,
        ),
        Metric(
            "dictionary_share",
            "gain of true dictionary",
            "Code MCC that the true dictionary adds beyond better inference.",
            "lower",
            ".3f",
            detail=True,
        ),
        Metric(
            "rest",
            "gain of neither",
            "Code MCC that is missing with the true dictionary and the best codes found: k is "
            "wrong, or the codes cannot be identified.",
            "lower",
            ".3f",
            detail=True,
        ),
        Metric(
            "code_mcc_own",
            "code MCC, few rows",
            "Code MCC of the SAE's own codes on the activations of the three-way comparison.",
            better="higher",
            format=".3f",
            in_table=False,
        ),
        Metric(
            "code_mcc_best",
            "code MCC, best codes",
            "Code MCC of the best codes found for the learned dictionary.",
            better="higher",
            format=".3f",
            in_table=False,
        ),
        Metric(
            "code_mcc_true",
            "code MCC, true dictionary",
            "Code MCC of the best codes found for the true dictionary.",
            better="higher",
            format=".3f",
            in_table=False,
        ),
        Metric(
            "fvu_own",
            "FVU, few rows",
            "FVU of the SAE's own codes on those activations.",
            better="lower",
            in_table=False,
        ),
        Metric(
            "fvu_best",
            "FVU, best codes",
            "FVU of the best codes found for the learned dictionary.",
            better="lower",
            in_table=False,
        ),
        Metric(
            "fvu_true",
            "FVU, true dictionary",
            "FVU of the best codes found for the true dictionary.",
            better="lower",
            in_table=False,
        ),
        Metric(
            "fvu_own_at_truth",
            "FVU, own codes at truth",
            "FVU of the SAE's own codes with each latent's direction replaced by its true feature.",
            better="lower",
            in_table=False,
        ),
    ),
)
