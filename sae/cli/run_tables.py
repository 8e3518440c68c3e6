"""The tables that are printed when a run has finished."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from sae.metrics.registry import SAE_COLUMNS, find_metric, find_metrics
from sae.runs.run_dir import RunDir

_LEVELS = ("pw_mcc_signed", "pw_mcc_signed_start", "pw_mcc_signed_chance", "shared_fraction_signed")
_HELD_OUT = (
    "output_cosine",
    "output_cosine_mean_ablation",
    "ce_clean",
    "ce_sae",
    "ce_zero_ablation",
    "ce_mean_ablation",
    "ce_difference",
    "loss_recovered",
    "dictionary_mcc_signed",
    "dictionary_mcc_random",
    "dictionary_mcc_samples",
)


def describe_run(summary: Mapping[str, Any], run: RunDir) -> str:
    """Return the main metrics of a finished run and the paths of its files, for printing.

    Args:
        summary: Contents of its `summary.json`.
        run: Its folder.
    """
    if "members" in summary:
        text = as_text(members_table(summary, run.path.name))
        if summary.get("seeds"):
            text += as_text(seeds_table(summary["seeds"]))
        return text + f"metrics  {run.summary}\n"
    return (
        as_text(metrics_table(summary))
        + f"report   {run.path / 'report.html'}\n"
        + f"metrics  {run.summary}\n"
        + f'SAE      SAE.load("{run.path / "sae"}")\n'
    )


def metrics_table(summary: Mapping[str, Any]) -> Table:
    """Return a table of the main metrics of one SAE, in training and on held-out activations."""
    held_out = summary["held_out"]
    table = Table(title=f"{summary['name']}: {summary['tokens']:,} tokens", title_justify="left")
    table.add_column("")
    for column in ("training", "held out"):
        table.add_column(column, justify="right")
    for name in ("fvu", "l0", "dead_fraction"):
        metric = find_metric(name)
        label = metric.arrow_label
        if name == "dead_fraction":
            label += f" (silent for {summary['dead_after_tokens']:,} tokens)"
        cells = [
            metric.text(values[name]) if name in values else "" for values in (summary, held_out)
        ]
        table.add_row(label, *cells)
        if name == "fvu" and "held_out_ema" in summary:
            averaged = metric.text(summary["held_out_ema"][name])
            table.add_row("  of the averaged weights (sae_ema/)", "", averaged)
    for name in ("resampled", "revived"):
        if name in summary:
            metric = find_metric(name)
            table.add_row(metric.indented_label, metric.text(summary[name]), "")
    for name in _HELD_OUT:
        if name in held_out:
            metric = find_metric(name)
            table.add_row(metric.arrow_label, "", metric.text(held_out[name]))
    rate = find_metric("tokens_per_second")
    table.add_row(rate.label, rate.text(summary["tokens_per_second"]), "")
    return table


def members_table(summary: Mapping[str, Any], title: str) -> Table:
    """Return a table with a row for each member of a run.

    Args:
        summary: Contents of the run's `summary.json`.
        title: Name of the run.
    """
    members = summary["members"]
    table = Table(title=f"{title}: {len(members)} members", title_justify="left")
    table.add_column("")
    columns = find_metrics(SAE_COLUMNS)
    for metric in columns:
        table.add_column(metric.short, justify="right")
    for member in members:
        if "stopped" in member:
            table.add_row(member["name"], f"{member['stopped']} at step {member['steps']}")
            continue
        held_out = member["held_out"]
        values = member | {"held_out_fvu": held_out["fvu"], "l0": held_out["l0"]}
        table.add_row(member["name"], *(metric.text(values[metric.name]) for metric in columns))
    return table


def seeds_table(groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with a row for each group of members that differ only in their seed.

    Args:
        groups: The results of `sae.lightning.seed_agreement`, by the name of the group.
    """
    table = Table(title="seeds: what they agree on", title_justify="left")
    levels = find_metrics(_LEVELS)
    fvu = find_metric("fvu")
    for column in ("", "seeds", *(metric.short for metric in levels), "consensus"):
        table.add_column(column, justify="right" if column else "left")
    for name, results in groups.items():
        consensus = results["consensus"]
        cell = f"{consensus['latents']:,} latents"
        if consensus["latents"]:
            cell += f", {fvu.short} {fvu.text(consensus['held_out'][fvu.name])}"
        cells = [metric.text(results[metric.name]) for metric in levels]
        table.add_row(name, str(len(results["members"])), *cells, cell)
    return table


def as_text(table: Table) -> str:
    """Return a table as text, 100 columns wide."""
    output = io.StringIO()
    Console(file=output, width=100).print(table)
    return output.getvalue()
