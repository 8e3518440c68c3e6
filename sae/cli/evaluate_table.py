"""The page that `evaluate` prints: a run's figures with interval and chance, controls beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

WIDTH = 100
"""Columns of the terminal that a page with five controls fits into."""

CAPTION = "95%: under resampling of documents, latents or features. An empty cell does not apply."

# Heading, then (label, key, format) of each figure below it.
SHOWN: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Reconstruction",
        (
            ("FVU (0 is a perfect copy)", "fvu", ".4f"),
            ("cosine", "cosine", ".4f"),
            ("shrinkage (1 is right)", "shrinkage", ".4f"),
            ("reconstruction bias (1)", "relative_reconstruction_bias", ".4f"),
            ("amortisation gap, FVU", "gap.fvu_gap", ".4f"),
            ("  share of the error", "gap.share", ".1%"),
            ("  certified, lasso objective", "gap.lasso_gap", ".4f"),
            ("model's output, cosine", "output_cosine", ".4f"),
            ("loss recovered (0 at zeros)", "loss_recovered", ".4f"),
            ("KL of the model's output", "kl_sae", ".4f"),
        ),
    ),
    (
        "Latents",
        (
            ("L0, on a token", "l0", ".2f"),
            ("never fired", "never_fired_fraction", ".1%"),
            ("dead at the end of training", "dead_fraction", ".1%"),
            ("fire on over 10% of tokens", "dense_fraction", ".1%"),
            ("c_dec, mean |cosine|", "c_dec", ".4f"),
        ),
    ),
    (
        "Against the truth",
        (
            ("dictionary MCC, signed", "dictionary_mcc_signed", ".3f"),
            ("MMCS", "mmcs", ".3f"),
            ("  uniqueness", "mmcs_uniqueness", ".3f"),
            ("code MCC", "code_mcc", ".3f"),
            ("  better codes would add", "inference_share", ".3f"),
            ("  the true dictionary more", "dictionary_share", ".3f"),
            ("  neither", "rest", ".3f"),
            ("support precision", "support_precision", ".3f"),
            ("  recall", "support_recall", ".3f"),
            ("  F1", "support_f1", ".3f"),
            ("DCI disentanglement", "dci_disentanglement", ".3f"),
            ("  completeness", "dci_completeness", ".3f"),
            ("  error", "dci_error", ".3f"),
            ("parents absorbed in full", "absorption_full", ".3f"),
            ("  in part", "absorption_fraction", ".3f"),
            ("probe on 1 latent, accuracy", "probe_1_latents", ".3f"),
            ("  on 5 latents", "probe_5_latents", ".3f"),
            ("  on 1 dimension of the data", "probe_dimension", ".3f"),
            ("  on all of them", "probe_activations", ".3f"),
        ),
    ),
    (
        "Interpretability",
        (
            ("machine score (MIS)", "mis", ".3f"),
            ("intruder found", "intruder", ".3f"),
        ),
    ),
    (
        "Capacity",
        (
            ("dimensions this L0 needs", "delta", ".1f"),
            ("  those there are, over it", "margin", ".2f"),
            ("largest L0 they allow for", "largest_k", ".0f"),
        ),
    ),
)


def table(
    name: str,
    figures: Mapping[str, Any],
    beside: Mapping[str, tuple[str, Mapping[str, Any]]],
    judge: str,
) -> Table:
    """Rows of `SHOWN` that are known of the run or a control.

    Args:
        name: of the run.
        figures: of the run, flat, with `<key>_low`, `_high` and `_chance`.
        beside: of each control its heading and figures.
        judge: what latents are judged by.
    """
    page = Table(
        title=f"{name}, {figures['tokens']:,} held-out activations",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=CAPTION + (f"\nInterpretability: judged by {judge}." if "mis" in figures else ""),
        caption_justify="left",
    )
    page.add_column("")
    for column in ("this\nrun", "95%", "chance", *(says for says, _ in beside.values())):
        page.add_column(column, justify="right", no_wrap=True)
    for heading, rows in SHOWN:
        cells = [cells for row in rows if any((cells := _cells(row, figures, beside))[1:])]
        if not cells:
            continue
        page.add_row()
        page.add_row(f"[bold]{heading}[/bold]")
        for row in cells:
            page.add_row(*row)
    return page


def _cells(
    row: tuple[str, str, str],
    figures: Mapping[str, Any],
    beside: Mapping[str, tuple[str, Mapping[str, Any]]],
) -> list[str]:
    label, key, form = row
    said = lambda of, key: "" if of.get(key) is None else format(of[key], form)
    low, high = said(figures, f"{key}_low"), said(figures, f"{key}_high")
    interval = f"{low} {high}" if low else ""
    others = [said(of, key) for _, of in beside.values()]
    return [label, said(figures, key), interval, said(figures, f"{key}_chance"), *others]
