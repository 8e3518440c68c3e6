"""Agreement of codes with the true codes of a world."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from torch import Tensor

from sae.metrics.code_matching import (
    CodeMatching,
    Support,
    code_chance,
    support_per_matched_latent,
)
from sae.metrics.interval import COSINE, SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, mean_score
from sae_kernels.codes import Codes

_SUPPORT: dict[str, Callable[[Support], Tensor]] = {
    "support_precision": attrgetter("precision"),
    "support_recall": attrgetter("recall"),
    "support_f1": attrgetter("f1"),
}


def measure_codes(
    code_pair: tuple[Codes, Codes],
    match: Callable[[Codes, Codes], CodeMatching],
    matching: CodeMatching,
) -> dict[str, Score]:
    """Return correlation and support agreement of matched latents and true features.

    Args:
        code_pair: the true codes and the SAE's codes of the same rows.
        match: function that matches latents to true features.
        matching: its result on these rows.
    """
    true_codes, codes = code_pair
    chance = lambda score: code_chance(score, true_codes, codes, draws=1)
    support = support_per_matched_latent(true_codes, codes, matching)

    def mean_support(part: Callable[[Support], Tensor]) -> Callable[[Codes, Codes], float]:
        return lambda z, z_hat: (
            part(support_per_matched_latent(z, z_hat, match(z, z_hat))).mean().item()
        )

    scores = {
        "code_mcc": mean_score(
            matching.correlations,
            bounds=COSINE,
            chance=chance(lambda z, z_hat: match(z, z_hat).mean()),
        )
    }
    for name, part in _SUPPORT.items():
        scores[name] = mean_score(part(support), bounds=SHARE, chance=chance(mean_support(part)))
    return scores


MEASUREMENT = Measurement(
    compute=measure_codes,
    needs=("code_pair", "match", "matching"),
    section="Ground truth",
    metrics=(
        Metric(
            "code_mcc",
            "code MCC",
            "Mean correlation between each true feature's activations and those of the latent "
            "matched to it.",
            "higher",
            ".3f",
        ),
        Metric(
            "support_precision",
            "support precision",
            "Share of a latent's firings at which its true feature is active.",
            "higher",
            ".3f",
        ),
        Metric(
            "support_recall",
            "support recall",
            "Share of a true feature's activations at which its latent fires.",
            "higher",
            ".3f",
            detail=True,
        ),
        Metric(
            "support_f1",
            "support F1",
            "Harmonic mean of support precision and recall.",
            "higher",
            ".3f",
            detail=True,
        ),
    ),
)
