"""Write `report.html`, one self-contained page about one run, without scripts or links."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from sae.browser.plots import TERM_PREFIX, curves_svg, density_svg
from sae.browser.run_data import RunData
from sae.files import write_text
from sae.metrics.examples import LatentExamples

_MAX_LATENTS = 20  # shown on a page
_MAX_EXAMPLES = 6  # shown of each latent
_SHADES = 9  # behind tokens, from weak to strong


@dataclass(frozen=True)
class _Metric:
    key: str
    label: str
    format: str
    description: str


_METRICS = (
    _Metric(
        "fvu",
        "Variance unexplained (FVU)",
        ".4f",
        "Squared error over variance: 0 for a perfect copy, 1 for the mean alone.",
    ),
    _Metric("l0", "Active latents (L0)", ".1f", "Mean number of latents that fire on a token."),
    _Metric(
        "dead_fraction",
        "Dead latents",
        ".2%",
        "Share of latents that had stopped firing when training ended.",
    ),
    _Metric(
        "never_fired_fraction",
        "Never fired",
        ".2%",
        "Share of latents that fired on no held-out token; the fewer tokens, the larger.",
    ),
    _Metric("cosine", "Cosine", ".4f", "Mean cosine between an activation and its reconstruction."),
    _Metric(
        "shrinkage",
        "Norm ratio",
        ".4f",
        "Mean norm of reconstructions over mean norm of activations; below 1 they are too short.",
    ),
    _Metric(
        "output_cosine",
        "Cosine of the model's output",
        ".4f",
        "Between the model's final hidden states with and without the SAE in place.",
    ),
    _Metric(
        "output_cosine_mean_ablation",
        "… with the mean instead",
        ".4f",
        "Baseline: the same cosine when every activation is replaced by the mean.",
    ),
    _Metric("ce_clean", "Loss of the model", ".4f", "Next-token cross-entropy in nats, unchanged."),
    _Metric("ce_sae", "… with the SAE", ".4f", "With activations replaced by reconstructions."),
    _Metric("ce_zero_ablation", "… with zeros", ".4f", "Baseline: activations replaced by zeros."),
    _Metric(
        "ce_mean_ablation", "… with the mean", ".4f", "Baseline: activations replaced by the mean."
    ),
    _Metric(
        "loss_recovered",
        "Loss recovered",
        ".2%",
        "1 if the SAE does not raise the model's loss, 0 if it raises it as much as zeros do.",
    ),
    _Metric("kl_sae", "KL", ".4f", "From the predictions without the SAE to those with it, nats."),
    _Metric(
        "dictionary_mcc_signed",
        "True features recovered (MCC)",
        ".4f",
        "Mean cosine between each true feature and the latent matched to it one to one.",
    ),
    _Metric(
        "dictionary_mcc_signed_chance",
        "… by chance",
        ".4f",
        "Baseline: the same mean cosine for random vectors.",
    ),
    _Metric("tokens", "Tokens", ",.0f", "Held-out tokens on which these metrics were measured."),
)
_TILES = ("fvu", "l0", "dead_fraction", "output_cosine", "loss_recovered", "dictionary_mcc_signed")


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run's folder, atomically, and return its path.

    The page shows config.yaml, metrics.csv, summary.json, density.json and examples.jsonl, and
    says which of them are missing.

    Raises:
        UserError: If the folder is not the folder of a run.
    """
    run = RunData.read(run_dir)
    rows = [row for metric in _METRICS if (row := _metric_row(run, metric))]
    page = load_template("report.html").render(
        title=run.name,
        subtitle=_subtitle(run.metadata | run.summary),
        tiles=[row for row in rows if row["key"] in _TILES],
        metrics=rows,
        speed=_speed(run.summary),
        # Only the plots are not escaped; plots.py draws them from numbers and column names.
        curves=[Markup(svg) for svg in curves_svg(run)],
        has_loss_terms=sum(name.startswith(TERM_PREFIX) for name in run.curves.points) > 1,
        density=Markup(density_svg(run.firing)) if run.firing else None,
        latents=[_latent_card(latent) for latent in evenly_ranked(run.latents, _MAX_LATENTS)],
        latents_read=len(run.latents),
        config=run.config,
        summary=json.dumps(run.summary, indent=2) if run.summary else "",
    )
    path = Path(run_dir) / "report.html"
    write_text(path, page)
    return path


def load_template(name: str) -> Template:
    """Return a Jinja template of this package, which escapes every value it is given."""
    environment = Environment(
        loader=PackageLoader("sae.browser", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def evenly_ranked(latents: list[LatentExamples], count: int) -> list[LatentExamples]:
    """Return `count` of the latents that have examples, evenly spaced by rank of frequency.

    The rarest comes first. All are returned if there are no more than `count`.
    """
    alive = [latent for latent in latents if latent.examples]
    alive.sort(key=lambda latent: (latent.frequency, latent.latent))
    if len(alive) <= count:
        return alive
    return [alive[round(i * (len(alive) - 1) / (count - 1))] for i in range(count)]


def _metric_row(run: RunData, metric: _Metric) -> dict[str, str] | None:
    """Return the row of a metric, or None if it was not measured.

    A metric without a held-out value shows the value from training, and its label says so.
    """
    value, label = run.held_out.get(metric.key), metric.label
    if value is None and metric.key != "tokens":
        value = run.summary.get(metric.key)
        label = metric.label if metric.key == "dead_fraction" else f"{metric.label}, training"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return {
        "key": metric.key,
        "label": label,
        "value": format(value, metric.format),
        "description": metric.description,
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


def _latent_card(latent: LatentExamples) -> dict[str, Any]:
    """Return what the page shows of a latent.

    Each token has a shade, from 0 where the latent is silent to `_SHADES` at its maximum.
    """
    maximum = latent.max_activation or 1.0
    return {
        "latent": latent.latent,
        "frequency": f"{latent.frequency:.3%}",
        "max": f"{latent.max_activation:.3g}",
        "examples": [
            [
                {
                    "text": (token if i else token.lstrip(" ")).replace("\n", "↵"),
                    "shade": max(0, min(_SHADES, math.ceil(_SHADES * value / maximum))),
                    "value": f"{value:.3g}",
                }
                for i, (token, value) in enumerate(
                    zip(example.tokens, example.activations, strict=True)
                )
            ]
            for example in latent.examples[:_MAX_EXAMPLES]
        ],
    }
