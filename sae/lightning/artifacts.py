"""The files of a finished run: the SAE, its metrics, examples and the report."""

from __future__ import annotations

import io
import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from sae.browser import write_report
from sae.evaluation.evaluate import evaluate
from sae.files import write_text
from sae.lightning.datamodule import ActivationDataModule
from sae.lightning.loggers import log_row
from sae.lightning.module import SAEModule
from sae.lightning.seed_agreement import AcrossSeeds
from sae.lightning.seed_agreement import table as seeds_table
from sae.metrics.examples import EXAMPLE_TOKENS, top_examples, write_examples
from sae.metrics.firing import Firing
from sae.metrics.registry import SAE_COLUMNS, find_metric, find_metrics
from sae.runs.run_dir import RunDir
from sae.training.member import Member


def finish(
    run: RunDir,
    places: list[RunDir],
    module: SAEModule,
    data: ActivationDataModule,
    trainer: Trainer,
    across: AcrossSeeds | None = None,
) -> str:
    """Write into each member's folder `sae/`, `summary.json`, `examples.jsonl` and `report.html`;
    of a member that was stopped the summary alone. What seeds agree on goes into the run's own, and
    to `consensus/`. Returns what to print."""
    summaries = []
    for member, place in zip(module.members, places, strict=True):
        shared = {
            "seconds": round(module.seconds, 3),
            "tokens_per_second": round(module.tokens / max(module.seconds, 1e-9), 1),
            "seed": member.config.seed,
            "device": _device(trainer),
            "positions": asdict(data.source.counts),
            "versions": {name: version(name) for name in ("torch", "lightning", "sae-workbench")},
            "python": platform.python_version(),
            "git_commit": _git_commit(),
        }
        figures = _finished(member, place, data) if member.live else _stopped(member)
        summary = {"name": member.name, **figures, **shared}
        write_text(place.summary, json.dumps(summary, indent=2) + "\n")
        if member.live:
            write_report(place.path)
        summaries.append(summary)
    _log(summaries, trainer, module.steps)
    if places == [run]:
        return _table(summaries[0], run)
    of_run: dict[str, Any] = {"name": run.path.name, "members": summaries}
    if across is not None:
        folders = {m.name: place.path for m, place in zip(module.members, places, strict=True)}
        of_run["seeds"] = across.finish(run.path, folders, module, trainer)
    write_text(run.summary, json.dumps(of_run) + "\n")
    return _tables(of_run, run)


def _log(summaries: list[dict[str, Any]], trainer: Trainer, step: int) -> None:
    """Hand the figures on held-out activations to every logger: of several members each member's
    under its name, and the best's as they are, so that a sweep has one figure to go by."""
    figures = {
        summary["name"]: {
            "dead_fraction": summary["dead_fraction"],
            **{f"held_out_{name}": value for name, value in summary["held_out"].items()},
        }
        for summary in summaries
        if "stopped" not in summary
    }
    row = dict(min(figures.values(), key=lambda figure: figure["held_out_fvu"]))
    if len(summaries) > 1:
        for name, figure in figures.items():
            row |= {f"{name}/{key}": value for key, value in figure.items()}
    log_row(trainer.loggers, row, step)


def _stopped(member: Member) -> dict[str, Any]:
    """Return the summary of a member that was stopped before the end."""
    return {
        "stopped": member.stopped["reason"],
        "steps": member.stopped["step"],
        "tokens": member.stopped["tokens"],
    }


def _finished(member: Member, place: RunDir, data: ActivationDataModule) -> dict[str, Any]:
    """Export a member, measure its held-out metrics and return its summary."""
    learner = member.learner
    metadata = {
        **data.source.metadata(),
        "hook": str(learner.sae.site),
        "tokens": learner.tokens,
        "seed": member.config.seed,
        "run": member.name,
        "version": version("sae-workbench"),
    }
    sae = learner.export()
    sae.metadata |= metadata
    sae.save(place.path / "sae")
    firing = Firing(sae.d_sae, sae.W_dec.device)
    held_out = evaluate(sae, data.source, max_tokens=data.held_out_tokens, firing=firing)
    firing.save(place.path / "density.json")
    more: dict[str, Any] = {} if learner.resampler is None else learner.resampler.counts()
    if learner.average is not None:
        average = learner.export(ema=True)
        average.metadata |= metadata
        average.save(place.path / "sae_ema")
        more["held_out_ema"] = evaluate(average, data.source, max_tokens=data.held_out_tokens)
    if (text := data.source.text_model()) is not None:
        examples = top_examples(sae, text, max_tokens=EXAMPLE_TOKENS)
        write_examples(examples, place.path / "examples.jsonl")
    return {
        "tokens": learner.tokens,
        "steps": learner.steps,
        "fvu": member.last_metrics["fvu"],
        "l0": member.last_metrics["l0"],
        "dead_fraction": learner.dead.dead_fraction().item(),
        "dead_after_tokens": learner.dead.dead_after,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.sparsity.expected_l0,
        "architecture": f"{type(sae.site).__name__}+{type(sae.sparsity).__name__}",
        "learning_rate": learner.lr,
        "activation_scale": learner.scale,
        "held_out": held_out,
        **more,
    }


def _table(summary: dict[str, Any], run: RunDir) -> str:
    """The figures one looks for first, training beside held-out text, and where the rest is."""
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
        table.add_row(
            label, *(metric.text(of[name]) if name in of else "" for of in (summary, held_out))
        )
        if name == "fvu" and "held_out_ema" in summary:
            averaged = metric.text(summary["held_out_ema"][name])
            table.add_row("  of the averaged weights (sae_ema/)", "", averaged)
    for name in ("resampled", "revived"):
        if name in summary:
            metric = find_metric(name)
            table.add_row(metric.indented_label, metric.text(summary[name]), "")
    for name in (
        "output_cosine",
        "output_cosine_mean_ablation",
        "ce_clean",
        "ce_sae",
        "ce_zero_ablation",
        "dictionary_mcc_signed",
        "dictionary_mcc_signed_chance",
    ):
        if name in held_out:
            metric = find_metric(name)
            table.add_row(metric.arrow_label, "", metric.text(held_out[name]))
    rate = find_metric("tokens_per_second")
    table.add_row(rate.label, rate.text(summary["tokens_per_second"]), "")
    return (
        printed(table)
        + f"report   {run.path / 'report.html'}\n"
        + f"figures  {run.summary}\n"
        + f'SAE      SAE.load("{run.path / "sae"}")\n'
    )


def _tables(of_run: dict[str, Any], run: RunDir) -> str:
    """A row for each member, and for each group that differs in its seed only."""
    summaries = of_run["members"]
    table = Table(title=f"{run.path.name}: {len(summaries)} members", title_justify="left")
    table.add_column("")
    columns = find_metrics(SAE_COLUMNS)
    for metric in columns:
        table.add_column(metric.short, justify="right")
    for summary in summaries:
        if "stopped" in summary:
            table.add_row(summary["name"], f"{summary['stopped']} at step {summary['steps']}")
            continue
        held_out = summary["held_out"]
        values = summary | {"held_out_fvu": held_out["fvu"], "l0": held_out["l0"]}
        table.add_row(summary["name"], *(metric.text(values[metric.name]) for metric in columns))
    text = printed(table)
    if of_run.get("seeds"):
        text += printed(seeds_table(of_run["seeds"]))
    return text + f"figures  {run.summary}\n"


def printed(table: Table) -> str:
    """Return a table as text, 100 columns wide."""
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, with `+` if files were changed."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        ask = lambda *words: subprocess.run(  # noqa: E731
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
