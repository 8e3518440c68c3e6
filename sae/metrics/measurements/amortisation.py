"""Error that better codes for the same dictionary would save."""

from __future__ import annotations

from torch import Tensor

from sae.autoencoder import SAE
from sae.metrics.amortisation import amortisation_gap
from sae.metrics.interval import POSITIVE, SHARE
from sae.metrics.metric import Measurement, Metric
from sae.metrics.score import Score, ratio_score, sums_by_cluster

CODE_ENTRIES, MIN_ROWS = 2**21, 256
"""Codes with this many entries (rows times d_sae) are solved for, on at least `MIN_ROWS` rows:
256 rows of 8,192 latents take 24 seconds of one core."""


def gap_rows(d_sae: int) -> slice:
    """Return the rows on which codes are solved for, for an SAE with `d_sae` latents."""
    return slice(0, max(MIN_ROWS, CODE_ENTRIES // d_sae))


def spread_rows(d_sae: int, rows: int) -> slice:
    """Return as many rows as `gap_rows`, evenly spaced over `rows`.

    Neighboring activations of text are of one document, and the first 1,024 of few documents.
    """
    count = min(gap_rows(d_sae).stop, rows)
    step = max(1, rows // count) if count else 1
    return slice(0, step * count, step)


def measure_amortisation(
    reconstructing_sae: SAE, x: Tensor, row_clusters: Tensor
) -> dict[str, Score | float]:
    """Return the amortisation gap of the SAE on activations spread over x [n, d_in].

    Args:
        reconstructing_sae: the SAE.
        x: activations.
        row_clusters: the independent unit of each activation, such as its document [n].
    """
    rows = spread_rows(reconstructing_sae.d_sae, len(x))
    gap = amortisation_gap(reconstructing_sae, x[rows])
    names = ["error", "best", "missed", "variation"]
    columns = dict(zip(names, gap.per_row.cpu().T, strict=True))
    sums = sums_by_cluster(columns, row_clusters[rows])
    saved = sums["error"] - sums["best"]
    numbers = {f"gap.{name}": value for name, value in gap.metrics().items()}
    return numbers | {
        "gap.fvu": ratio_score(sums["error"], sums["variation"], bounds=POSITIVE),
        "gap.fvu_best": ratio_score(sums["best"], sums["variation"], bounds=POSITIVE),
        "gap.fvu_gap": ratio_score(saved, sums["variation"], bounds=POSITIVE),
        "gap.share": ratio_score(saved, sums["error"], bounds=SHARE),
        "gap.lasso_gap": ratio_score(sums["missed"], sums["variation"], bounds=POSITIVE),
    }


MEASUREMENT = Measurement(
    compute=measure_amortisation,
    needs=("reconstructing_sae", "x", "row_clusters"),
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
