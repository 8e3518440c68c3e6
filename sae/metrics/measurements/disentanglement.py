"""Disentanglement, completeness and informativeness of codes."""

from __future__ import annotations

import numpy as np

from sae.metrics.code_matching import CodeMatching, as_codes, samples_matrix
from sae.metrics.dci import dci
from sae.metrics.interval import POSITIVE, SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score, ratio_score
from sae_kernels.codes import Codes

MAX_PAIRS = 2**17
"""Lasso regressions of more features times latents than this take longer than all other metrics
together, so they are left out."""


def measure_disentanglement(
    code_pair: tuple[Codes, Codes], matching: CodeMatching
) -> dict[str, Score]:
    """Return DCI of the codes, or nothing where that would take too long.

    The chance level is DCI with the SAE's codes of shuffled rows.
    """
    true_codes, codes = code_pair
    if len(matching.features) * codes.d_sae > MAX_PAIRS:
        return {}
    shuffled = samples_matrix(codes)[np.random.default_rng(0).permutation(codes.batch)]
    result, by_chance = dci(true_codes, codes), dci(true_codes, as_codes(shuffled))
    counts = result.weights > 0
    weights, values = result.weights[counts], result.disentanglement[counts]
    return {
        "dci_disentanglement": ratio_score(
            weights * values,
            weights,
            bounds=SHARE,
            chance=by_chance.mean_disentanglement(),
        ),
        "dci_completeness": mean_score(
            result.completeness, bounds=SHARE, chance=by_chance.mean_completeness()
        ),
        "dci_error": mean_score(result.error, bounds=POSITIVE, chance=by_chance.mean_error()),
    }


MEASUREMENT = Measurement(
    compute=measure_disentanglement,
    needs=("code_pair", "matching"),
    section="Ground truth",
    metrics=(
        Metric(
            "dci_disentanglement",
            "DCI disentanglement",
            "1 if every latent helps to predict one true feature only, 0 if all features equally.",
            "higher",
            ".3f",
        ),
        Metric(
            "dci_completeness",
            "DCI completeness",
            "1 if every true feature is predicted from one latent only, 0 if from all equally.",
            "higher",
            ".3f",
            detail=True,
        ),
        Metric(
            "dci_error",
            "DCI prediction error",
            "Root mean squared error of predicting a true feature from the latents, over its "
            "standard deviation.",
            "lower",
            ".3f",
            detail=True,
        ),
    ),
)
