"""`report.html`: one page about one run, that opens anywhere and runs nothing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from sae.browser.plots import curves_svg, density_svg
from sae.browser.run_data import Run
from sae.files import write_text
from sae.metrics.examples import LatentExamples

_LATENTS, _EXAMPLES, _SHADES = 20, 6, 9


@dataclass(frozen=True)
class _Figure:
    key: str
    label: str
    format: str
    meaning: str


_FIGURES = (
    _Figure(
        "fvu",
        "Variance unexplained (FVU)",
        ".4f",
        "Squared error over variance. 0 is a perfect copy, 1 is what the mean alone would give.",
    ),
    _Figure("l0", "Active latents (L0)", ".1f", "Mean number of latents that fire on a token."),
    _Figure(
        "dead_fraction", "Dead latents", ".2%", "Share that had stopped firing when training ended."
    ),
    _Figure(
        "never_fired_fraction",
        "Never fired",
        ".2%",
        "Share that fired on no held-out token; larger the fewer tokens there are.",
    ),
    _Figure("cosine", "Cosine", ".4f", "Mean cosine between an activation and its reconstruction."),
    _Figure(
        "shrinkage",
        "Length kept",
        ".4f",
        "Mean length of reconstructions over that of activations; below 1 they are too short.",
    ),
    _Figure(
        "output_cosine",
        "Output cosine",
        ".4f",
        "Between the model's final hidden states with and without the autoencoder in place.",
    ),
    _Figure(
        "output_cosine_mean_ablation",
        "… with the mean instead",
        ".4f",
        "Control: the same when each activation is replaced by the mean. Compare with this.",
    ),
    _Figure("ce_clean", "Loss of the model", ".4f", "Next-token cross-entropy in nats, untouched."),
    _Figure("ce_sae", "… with the autoencoder", ".4f", "With reconstructions put in their place."),
    _Figure(
        "ce_zero_ablation", "… with zeros", ".4f", "Control: with zeros in place of activations."
    ),
    _Figure(
        "ce_mean_ablation", "… with the mean", ".4f", "Control: with the mean in place of them."
    ),
    _Figure(
        "loss_recovered",
        "Loss recovered",
        ".2%",
        "1 would be no harm done, 0 no better than putting zeros there.",
    ),
    _Figure("kl_sae", "KL", ".4f", "From the clean predictions to those with it in place, nats."),
    _Figure(
        "dictionary_mcc_signed",
        "True features found",
        ".4f",
        "Mean cosine between each true feature and the latent matched to it one to one.",
    ),
    _Figure(
        "dictionary_mcc_signed_chance", "… by chance", ".4f", "Control: the same of random vectors."
    ),
    _Figure("tokens", "Tokens", ",.0f", "Held-out tokens these figures come from."),
)
_TILES = ("fvu", "l0", "dead_fraction", "output_cosine", "loss_recovered", "dictionary_mcc_signed")


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run's folder from what lies there, atomically; returns its path.

    Reads config.yaml, metrics.csv, summary.json, density.json and examples.jsonl; what is missing
    is said to be missing on the page. Raises UserError when the folder is not one of a run.
    """
    run = Run.read(run_dir)
    curves = curves_svg(run)
    figures = [row for figure in _FIGURES if (row := _row(run, figure))]
    page = template("report.html").render(
        title=run.name,
        subtitle=_subtitle(run.metadata | run.summary),
        tiles=[row for row in figures if row["key"] in _TILES],
        figures=figures,
        speed=_speed(run.summary),
        # The only two things not escaped: pictures that plots.py drew from numbers.
        curves=Markup(curves) if curves else None,
        density=Markup(density_svg(run.firing)) if run.firing else None,
        latents=[_card(latent) for latent in spread(run.latents, _LATENTS)],
        latents_read=len(run.latents),
        config=run.config,
        summary=json.dumps(run.summary, indent=2) if run.summary else "",
    )
    path = Path(run_dir) / "report.html"
    write_text(path, page)
    return path


def template(name: str) -> Template:
    """A page of this room; what is put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("sae.browser", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def spread(latents: list[LatentExamples], count: int) -> list[LatentExamples]:
    """`count` of the latents that have examples, at even ranks of frequency, the rarest first."""
    alive = sorted((one for one in latents if one.examples), key=lambda x: (x.frequency, x.latent))
    if len(alive) <= count:
        return alive
    return [alive[round(i * (len(alive) - 1) / (count - 1))] for i in range(count)]


def _row(run: Run, figure: _Figure) -> dict[str, str] | None:
    """The held-out value where there is one, else the training one, which says so."""
    value, label = run.held_out.get(figure.key), figure.label
    if value is None and figure.key != "tokens":
        value = run.summary.get(figure.key)
        label = figure.label if figure.key == "dead_fraction" else f"{figure.label}, training"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return {
        "key": figure.key,
        "label": label,
        "value": format(value, figure.format),
        "meaning": figure.meaning,
    }


def _subtitle(facts: dict[str, Any]) -> str:
    parts = [str(facts[key]) for key in ("model", "hook", "architecture") if facts.get(key)]
    parts += [f"{key} {facts[key]:,}" for key in ("d_in", "d_sae", "k") if facts.get(key)]
    return " · ".join(parts)


def _speed(summary: dict[str, Any]) -> str:
    parts = []
    if tokens := summary.get("tokens"):
        parts.append(f"{tokens:,} tokens")
    if steps := summary.get("steps"):
        parts.append(f"{steps:,} steps")
    if seconds := summary.get("seconds"):
        parts.append(f"{seconds:,.0f} s")
    if rate := summary.get("tokens_per_second"):
        parts.append(f"{rate:,.0f} tokens/s")
    if device := summary.get("device"):
        parts.append(f"on {device}")
    return " · ".join(parts)


def _card(latent: LatentExamples) -> dict[str, Any]:
    """A latent as the page shows it: every token with its shade, 0 (silent) to 9 (its maximum)."""
    top = latent.max_activation or 1.0
    return {
        "latent": latent.latent,
        "frequency": f"{latent.frequency:.3%}",
        "max": f"{latent.max_activation:.3g}",
        "examples": [
            [
                {
                    "text": (token if i else token.lstrip(" ")).replace("\n", "↵"),
                    "shade": max(0, min(_SHADES, math.ceil(_SHADES * value / top))),
                    "value": f"{value:.3g}",
                }
                for i, (token, value) in enumerate(
                    zip(example.tokens, example.activations, strict=True)
                )
            ]
            for example in latent.examples[:_EXAMPLES]
        ],
    }
