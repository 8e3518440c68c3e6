"""The list of all metrics: every table, CSV label, page, plot and logger reads them from here.

A metric of an evaluated SAE is declared in a file of `sae.metrics.measurements`, with the function
that measures it, and listed in `MEASUREMENTS`. Metrics that training or a comparison of seeds
measures are declared in this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sae.metrics.measurements import (
    absorption,
    amortisation,
    capacity,
    codes,
    data,
    decoder,
    dictionary,
    disentanglement,
    inference,
    interpretability,
    latents,
    model_output,
    probing,
    reconstruction,
)
from sae.metrics.metric import Measurement, Metric

MEASUREMENTS: list[Measurement] = [
    reconstruction.MEASUREMENT,
    amortisation.MEASUREMENT,
    model_output.MEASUREMENT,
    latents.MEASUREMENT,
    decoder.MEASUREMENT,
    dictionary.MEASUREMENT,
    codes.MEASUREMENT,
    inference.MEASUREMENT,
    disentanglement.MEASUREMENT,
    absorption.MEASUREMENT,
    probing.MEASUREMENT,
    interpretability.MEASUREMENT,
    capacity.MEASUREMENT,
    data.MEASUREMENT,
]
"""The measurements that `evaluate` makes, in order."""

SECTIONS = (
    "Reconstruction",
    "Effect on the model",
    "Latents",
    "Ground truth",
    "Interpretability",
    "Capacity",
    "Data",
    "Training",
    "Agreement between seeds",
)
"""Headings of the tables, in order; others come last."""

_OTHER_METRICS: dict[str, tuple[Metric, ...]] = {
    "Latents": (
        Metric(
            "dead_fraction",
            "dead latents",
            "Share of latents that had stopped firing when training ended.",
            "lower",
            ".2%",
            heading="dead",
        ),
    ),
    "Data": (
        Metric("tokens", "held-out tokens", "Held-out activations evaluated.", format=",.0f"),
        Metric(
            "downstream_tokens",
            "tokens replaced",
            "Held-out positions at which the model's activations were replaced.",
            format=",.0f",
            in_table=False,
        ),
        Metric(
            "ce_tokens",
            "tokens predicted",
            "Held-out positions over which the model's loss is a mean.",
            format=",.0f",
            in_table=False,
        ),
    ),
    "Training": (
        Metric("loss", "loss", "Weighted sum of the loss terms.", "lower", in_table=False),
        Metric("lr", "learning rate", "Current learning rate.", format=".3g", in_table=False),
        Metric(
            "learning_rate",
            "learning rate",
            "Largest learning rate of the run.",
            format=".3g",
            in_table=False,
        ),
        Metric(
            "tokens_per_second",
            "tokens per second",
            "Training throughput, including harvests.",
            "higher",
            ",.0f",
            heading="tokens/s",
            in_table=False,
        ),
        Metric("steps", "steps", "Training steps taken.", format=",.0f", in_table=False),
        Metric(
            "resampled",
            "latents resampled",
            "Dead latents that were reinitialised.",
            format=",.0f",
            in_table=False,
        ),
        Metric(
            "revived",
            "resampled, fired again",
            "Resampled latents that have fired since.",
            format=",.0f",
            detail=True,
            in_table=False,
        ),
    ),
    "Agreement between seeds": (
        Metric(
            "pw_mcc_signed",
            "PW-MCC",
            "Mean cosine of latents matched one to one, over pairs of seeds.",
            "higher",
            ".3f",
        ),
        Metric(
            "pw_mcc_signed_start",
            "PW-MCC at the start",
            "Baseline: PW-MCC of the same SAEs before training.",
            format=".3f",
            heading="at start",
            detail=True,
        ),
        Metric(
            "shared_fraction_signed",
            "shared latents",
            "Share of latents matched above 0.7 in decoder and encoder cosine.",
            "higher",
            ".1%",
            heading="shared",
        ),
    ),
}

SAE_COLUMNS = ("fvu", "held_out_fvu", "l0", "dead_fraction")
"""Columns of the tables that have one row per SAE of a run or a sweep."""


def register(measurement: Measurement) -> Measurement:
    """Add a measurement from outside this package to `MEASUREMENTS`, and return it.

    Raises:
        ValueError: a metric of this name is declared already.
    """
    declared = all_metrics()
    for metric in measurement.metrics:
        if metric.name in declared:
            raise ValueError(f"a metric named {metric.name!r} exists; choose another name")
    MEASUREMENTS.append(measurement)
    return measurement


def by_section() -> Iterator[tuple[str, tuple[Metric, ...]]]:
    """Yield each section's heading and its metrics, in the order in which they are shown."""
    sections: dict[str, list[Metric]] = {section: [] for section in SECTIONS}
    for measurement in MEASUREMENTS:
        sections.setdefault(measurement.section, []).extend(measurement.metrics)
    for section, metrics in _OTHER_METRICS.items():
        sections[section].extend(metrics)
    for section, metrics in sections.items():
        yield section, tuple(metrics)


def all_metrics() -> dict[str, Metric]:
    """Return every declared metric by its name, in the order in which they are shown."""
    return {metric.name: metric for _, metrics in by_section() for metric in metrics}


def find_metric(name: str) -> Metric:
    """Return the declaration of the metric that is stored under the key `name`.

    Understands `held_out_<name>`, `<name>_chance`, `<SAE or group>/<name>` and `loss_<term>`. An
    undeclared name gets a plain declaration with the name as its label.
    """
    name = name.rsplit("/", 1)[-1]
    if metric := all_metrics().get(name):
        return metric
    if name.startswith("held_out_"):
        return find_metric(name.removeprefix("held_out_")).held_out()
    if name.startswith("loss_"):
        return Metric(name, f"loss term {name.removeprefix('loss_')}", "One term of the loss.")
    if name.endswith("_chance"):
        return find_metric(name.removesuffix("_chance")).chance()
    return Metric(name, name)


def find_metrics(names: Iterable[str]) -> list[Metric]:
    """Return the declarations of several metrics, see `find_metric`."""
    return [find_metric(name) for name in names]
