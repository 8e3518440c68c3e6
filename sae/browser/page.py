"""Write `report.html`, one self-contained page about one run, without scripts or links."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from sae.browser.plots import TERM_PREFIX, curves_svg, density_svg
from sae.browser.run_data import RunData
from sae.files import write_text
from sae.metrics.examples import LatentExamples
from sae.metrics.metric import Metric
from sae.metrics.registry import all_metrics

_MAX_LATENTS = 20  # shown on a page
_MAX_EXAMPLES = 6  # shown of each latent
_SHADES = 9  # behind tokens, from weak to strong


# Metrics of training that stand in summary.json itself, beside the held-out ones.
_AFTER_TRAINING = ("fvu", "l0", "dead_fraction")
_TILES = (
    *("fvu", "l0", "dead_fraction"),
    *("output_cosine", "ce_difference", "loss_recovered"),
    "dictionary_mcc_signed",
)


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run's folder, atomically, and return its path.

    The page shows config.yaml, metrics.csv, summary.json, density.json and examples.jsonl, and
    says which of them are missing.

    Raises:
        UserError: If the folder is not the folder of a run.
    """
    run = RunData.read(run_dir)
    rows = list(_metric_rows(run))
    page = load_template("report.html").render(
        title=run.name,
        subtitle=_subtitle(run.metadata | run.summary),
        tiles=[row for name in _TILES for row in rows if row["key"] == name],
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


def _metric_rows(run: RunData) -> Iterator[dict[str, str]]:
    """Yield a row for each declared metric that was measured.

    Values of `evaluate`, which come with intervals, go before those at the end of training. A
    metric without a held-out value shows the value from training, and its label says so.
    """
    for metric in all_metrics().values():
        if not metric.in_table:
            continue
        values, label = run.held_out | run.evaluation, metric.title
        if metric.name not in values and metric.name in _AFTER_TRAINING:
            values = run.summary
            if metric.name != "dead_fraction":
                label += ", training"
        value = values.get(metric.name)
        if isinstance(value, int | float) and math.isfinite(value):
            yield {
                "key": metric.name,
                "label": label,
                "value": metric.text(value),
                "description": " ".join((metric.meaning, *_context(metric, values))),
            }


def _context(metric: Metric, values: dict[str, Any]) -> Iterator[str]:
    """Yield the interval and the chance level of a metric in words, where they are known."""
    low, high = values.get(f"{metric.name}_low"), values.get(f"{metric.name}_high")
    if low is not None and high is not None:
        yield f"95% interval {metric.text(low)} to {metric.text(high)}."
    if (units := values.get(f"{metric.name}_units")) is not None:
        yield f"No interval: only {units} documents, latents or features."
    chance = values.get(f"{metric.name}_chance")
    if chance is not None:
        yield f"Chance level {metric.text(chance)}."


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
