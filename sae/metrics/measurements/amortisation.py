"""Error that better codes for the same dictionary would save."""

from __future__ import annotations

from torch import Tensor

from sae.autoencoder import SAE
from sae.metrics.amortisation import amortisation_gap
from sae.metrics.bootstrap import Score, bootstrap_score, ratio
from sae.metrics.metric import Measurement, Metric

CODE_ENTRIES, MIN_ROWS = 2**21, 256
"""Codes with this many entries (rows times d_sae) are solved for, on at least `MIN_ROWS` rows:
256 rows of 8,192 latents take 24 seconds of one core."""


def gap_rows(d_sae: int) -> slice:
    """Return the rows on which codes are solved for, for an SAE with `d_sae` latents."""
    return slice(0, max(MIN_ROWS, CODE_ENTRIES // d_sae))


def measure_amortisation(reconstructing_sae: SAE, x: Tensor) -> dict[str, Score | float]:
    """Return the amortisation gap of the SAE on the first of the activations x [n, d_in]."""
    gap = amortisation_gap(reconstructing_sae, x[gap_rows(reconstructing_sae.d_sae)])
    error, best_error, missed, variation = gap.per_row.T
    saved_share = lambda error, best, axis: 1 - best.sum(axis) / error.sum(axis)
    numbers = {f"gap.{name}": value for name, value in gap.metrics().items()}
    return numbers | {
        "gap.fvu": bootstrap_score(error, variation, statistic=ratio),
        "gap.fvu_best": bootstrap_score(best_error, variation, statistic=ratio),
        "gap.fvu_gap": bootstrap_score(error - best_error, variation, statistic=ratio),
        "gap.share": bootstrap_score(error, best_error, statistic=saved_share),
        "gap.lasso_gap": bootstrap_score(missed, variation, statistic=ratio),
    }


MEASUREMENT = Measurement(
    compute=measure_amortisation,
    needs=("reconstructing_sae", "x"),
    section="Reconstruction",
    metrics=(
        Metric(
            "gap.fvu_gap",
            "amortisation gap, FVU",
            "FVU that better codes save with the same dictionary and as many active latents.",
            "lower",
        ),
        Metric(
            "gap.share",
            "gap, share of FVU",
            "The amortisation gap as a share of the SAE's FVU.",
            "lower",
            ".1%",
            detail=True,
        ),
        Metric(
            "gap.lasso_gap",
            "gap, certified lasso",
            "Certified lower bound on how far the codes are from the optimum of the lasso, in "
            "units of the variance.",
            "lower",
            detail=True,
        ),
        Metric(
            "gap.rows",
            "gap, rows",
            "Activations on which the amortisation gap was measured.",
            format=",.0f",
            in_table=False,
        ),
        Metric(
            "gap.l0", "gap, L0", "The SAE's L0 on those activations.", format=".1f", in_table=False
        ),
        Metric(
            "gap.fvu",
            "gap, FVU",
            "FVU of the SAE's codes on those activations.",
            better="lower",
            in_table=False,
        ),
        Metric(
            "gap.fvu_best",
            "gap, best FVU",
            "FVU of the best codes found with as many active latents in every row.",
            better="lower",
            in_table=False,
        ),
        Metric(
            "gap.penalty",
            "gap, lasso penalty",
            "Penalty at which the lasso has the SAE's L0, for decoder rows of norm 1.",
            in_table=False,
        ),
        Metric(
            "gap.l0_lasso",
            "gap, L0 of the lasso",
            "L0 of the lasso's codes.",
            format=".1f",
            in_table=False,
        ),
        Metric(
            "gap.uncertified",
            "gap, uncertified",
            "Upper bound on what the solver of the lasso left over, in units of the variance.",
            better="lower",
            in_table=False,
        ),
    ),
)
