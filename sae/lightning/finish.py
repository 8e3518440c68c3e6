"""What a finished run leaves: the SAE, its figures, examples and the report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from sae.activations import ModelActivations
from sae.lightning.datamodule import ActivationDataModule
from sae.lightning.module import SAEModule
from sae.lightning.run import RunFolder
from sae.metrics.evaluate import evaluate
from sae.metrics.examples import top_examples, write_examples
from sae.report import write_report

EXAMPLE_TOKENS = 65536


def finish(run: RunFolder, module: SAEModule, data: ActivationDataModule, trainer: Trainer) -> str:
    """Write `sae/`, `summary.json`, `examples.jsonl` and `report.html`; returns what to print."""
    learner = module.learner
    sae = learner.export()
    sae.metadata |= {
        **data.source.describe(),
        "hook": sae.site.hooks[0],
        "tokens": learner.tokens,
        "seed": module.seed,
        "run": run.path.name,
        "version": version("sae-workbench"),
    }
    sae.save(run.path / "sae")

    summary: dict[str, Any] = {
        "name": run.path.name,
        "tokens": learner.tokens,
        "steps": learner.steps,
        "seconds": round(module.seconds, 3),
        "tokens_per_second": round(learner.tokens / max(module.seconds, 1e-9), 1),
        "fvu": module.last_read["fvu"],
        "l0": module.last_read["l0"],
        "dead_fraction": learner.dead.dead_fraction().item(),
        "dead_after_tokens": module.dead_after,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": getattr(sae.sparsity, "k", None),
        "architecture": f"{type(sae.site).__name__}+{type(sae.sparsity).__name__}",
        "learning_rate": learner.lr,
        "activation_scale": learner.scale,
        "seed": module.seed,
        "device": _device(trainer),
        "held_out": evaluate(sae, data.source, max_tokens=data.held_out_tokens),
        "data": data.source.account(),
        "versions": {name: version(name) for name in ("torch", "lightning", "sae-workbench")},
        "python": platform.python_version(),
        "git_commit": _git_commit(),
    }
    if isinstance(data.source, ModelActivations):
        examples = top_examples(sae, data.source, max_tokens=EXAMPLE_TOKENS)
        write_examples(examples, run.path / "examples.jsonl")
    write_json(run.summary, summary)
    report = write_report(run.path)
    return _table(summary) + f"\n{report}\n{run.path / 'sae'}    SAE.load reads it\n"


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write `value` to `file`, all or nothing."""
    staging = file.with_suffix(file.suffix + ".tmp")
    staging.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(staging, file)


def _table(summary: dict[str, Any]) -> str:
    return json.dumps(summary, indent=1)


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from, with `+` when it was changed since."""
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
