"""The files of a finished run: the SAE, its metrics, examples and the report."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from sae.activations import ActivationData
from sae.browser import write_report
from sae.evaluation.evaluate import evaluate
from sae.files import write_text
from sae.lightning.loggers import log_row
from sae.lightning.module import SAEModule
from sae.lightning.seed_agreement import SeedAgreement
from sae.metrics.examples import EXAMPLE_TOKENS, top_examples, write_examples
from sae.metrics.firing import Firing
from sae.runs.run_dir import RunDir
from sae.training.member import Member


def write_artifacts(
    run: RunDir,
    member_dirs: Sequence[RunDir],
    module: SAEModule,
    data: ActivationData,
    trainer: Trainer,
    seed_agreement: SeedAgreement | None = None,
) -> dict[str, Any]:
    """Write the files of a finished run, and return the contents of its `summary.json`.

    The folder of each member gets `sae/`, `summary.json`, `density.json`, `examples.jsonl` (if the
    source is a model on text) and `report.html`; that of a member that was stopped gets
    `summary.json` only. The agreement of seeds goes into the summary of the run and `consensus/`.

    Args:
        run: Folder of the run.
        member_dirs: Folder of each member; of a single member it is the run's.
        module: The trained members.
        data: The activations they were trained on.
        trainer: The trainer of the run.
        seed_agreement: The callback that compares seeds, if some members differ in their seed only.
    """
    summaries = []
    counts = data.source.counts
    for member, folder in zip(module.members, member_dirs, strict=True):
        shared = {
            "seconds": round(module.seconds, 3),
            "tokens_per_second": round(module.tokens / max(module.seconds, 1e-9), 1),
            "seed": member.config.seed,
            "device": _device_name(trainer),
            "positions": asdict(counts) if counts.kept else None,
            "versions": {name: version(name) for name in ("torch", "lightning", "sae-workbench")},
            "python": platform.python_version(),
            "git_commit": _git_commit(),
        }
        if member.stopped is None:
            metrics = _export_and_measure(member, folder, data)
        else:
            metrics = {
                "stopped": member.stopped["reason"],
                "steps": member.stopped["step"],
                "tokens": member.stopped["tokens"],
            }
        summary = {"name": member.name, **metrics, **shared}
        write_text(folder.summary, json.dumps(summary, indent=2) + "\n")
        if member.live:
            write_report(folder.path)
        summaries.append(summary)
    _log_final_metrics(summaries, trainer, module.steps)
    if list(member_dirs) == [run]:
        return summaries[0]
    run_summary: dict[str, Any] = {"name": run.path.name, "members": summaries}
    if seed_agreement is not None:
        paths = {m.name: d.path for m, d in zip(module.members, member_dirs, strict=True)}
        run_summary["seeds"] = seed_agreement.finish(run.path, paths, module, trainer)
    write_text(run.summary, json.dumps(run_summary) + "\n")
    return run_summary


def _log_final_metrics(summaries: list[dict[str, Any]], trainer: Trainer, step: int) -> None:
    """Hand the final held-out metrics to every logger.

    If the run has several members, each member's metrics go under its name, and the best member's
    also go without a name, so that a sweep has one metric to optimize.
    """
    by_member = {
        summary["name"]: {
            "dead_fraction": summary["dead_fraction"],
            **{f"held_out_{name}": value for name, value in summary["held_out"].items()},
        }
        for summary in summaries
        if "stopped" not in summary
    }
    row = dict(min(by_member.values(), key=lambda metrics: metrics["held_out_fvu"]))
    if len(summaries) > 1:
        for name, metrics in by_member.items():
            row |= {f"{name}/{key}": value for key, value in metrics.items()}
    log_row(trainer.loggers, row, step)


def _export_and_measure(member: Member, folder: RunDir, data: ActivationData) -> dict[str, Any]:
    """Save a member's SAE, measure its held-out metrics, and return its summary."""
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
    sae.save(folder.path / "sae")
    firing = Firing(sae.d_sae, sae.W_dec.device)
    held_out = evaluate(sae, data.source, max_tokens=data.held_out_tokens, firing=firing)
    firing.save(folder.path / "density.json")
    optional: dict[str, Any] = {} if learner.resampler is None else learner.resampler.counts()
    if learner.average is not None:
        average = learner.export(ema=True)
        average.metadata |= metadata
        average.save(folder.path / "sae_ema")
        optional["held_out_ema"] = evaluate(average, data.source, max_tokens=data.held_out_tokens)
    if (text := data.source.text_model()) is not None:
        examples = top_examples(sae, text, max_tokens=EXAMPLE_TOKENS)
        write_examples(examples, folder.path / "examples.jsonl")
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
        **optional,
    }


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, with `+` if files were changed."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        changes = _git(checkout, "status", "--porcelain", "-uno")
        return _git(checkout, "rev-parse", "HEAD") + ("+" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(checkout: Path, *args: str) -> str:
    """Return the output of a git command."""
    command = ["git", *args]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout.strip()
