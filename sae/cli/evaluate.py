"""`evaluate`: figures of a finished run beside its controls, and which part holds it back."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console

from sae.activations import Source
from sae.autoencoder import SAE
from sae.cli.command import CommandParser
from sae.cli.config import parse_config
from sae.cli.evaluate_table import WIDTH, evaluation_table
from sae.errors import UserError
from sae.evaluation.baselines import siblings, train
from sae.evaluation.context import Case
from sae.evaluation.diagnosis import diagnose
from sae.evaluation.evaluate import evaluate
from sae.evaluation.registry import scores
from sae.evaluation.samples import Sample
from sae.evaluation.similarity import Judge
from sae.files import write_text
from sae.metrics.bootstrap import bootstrap_score
from sae.metrics.capacity import capacity, effective_dimension
from sae.metrics.firing import Firing
from sae.runs.run_dir import RunDir


def parser() -> CommandParser:
    """Return the parser of `evaluate`."""
    parser = CommandParser(
        "evaluate",
        usage="RUN [--tokens N] [--controls false]",
        description="Held-out metrics of a finished run, each with its 95% interval and its chance "
        "level where it has one, beside the same metrics of its baselines, and which part of the "
        "run limits it. Also written to RUN/evaluation.json.",
        example="python train.py evaluate runs/default --controls false",
    )
    parser.add_argument("run", type=str, help="run folder, such as runs/default")
    parser.add_argument(
        "--tokens", type=PositiveInt, help="held-out activations; default: as in the run"
    )
    parser.add_switch(
        "--controls",
        default=True,
        help="false: do not train the baselines, each of which takes about as long as the run",
    )
    return parser


def run(options: Namespace, settings: list[str]) -> int:
    """Measure, print and write `evaluation.json`; returns the exit code."""
    run = RunDir(options.run)
    if not run.config.is_file():
        raise UserError(
            f"{run.path} holds no finished run; give the folder of one, such as runs/default"
        )
    run_settings = parse_config(["--config", str(run.config)]).run
    data = run_settings.data
    if run_settings.several:
        names = ", ".join(str(run.member(name).path) for name in run_settings.members)
        raise UserError(f"{run.path} holds several; give one of: {names}")
    (recipe,) = run_settings.members.values()
    if not (run.path / "sae").is_dir():
        raise UserError(
            f"{run.path} holds no finished run; finish it with `fit --resume {run.path}`, or give "
            "the folder of another"
        )
    device = run_settings.device
    data.source.setup(device)
    sae = SAE.load(run.path / "sae", device=device)
    tokens = options.tokens or data.held_out_tokens
    judge = Judge.of(data.source)
    figures = measured(sae, data.source, tokens, data.seed, judge, downstream=True)
    summary = json.loads(run.summary.read_text(encoding="utf-8")) if run.summary.is_file() else {}
    if "dead_fraction" in summary:
        dead = torch.arange(sae.d_sae) < round(summary["dead_fraction"] * sae.d_sae)
        figures |= bootstrap_score(dead).figures("dead_fraction")
    beside: dict[str, tuple[str, dict[str, Any]]] = {}
    if options.controls and recipe.full_contexts:
        sys.stdout.write("no controls: end-to-end terms need the model's own passes\n")
    elif options.controls:
        found = siblings(recipe, data.source, data.batch_size * data.block_batches)
        names = ", ".join(some.name for some in found)
        sys.stdout.write(f"training {len(found)} controls ({names}); --controls false: none\n")
        sys.stdout.flush()
        train(found, data, run_settings.steps, device)
        for some in found:
            assert some.sae is not None
            of_it = measured(some.sae, some.source, tokens, data.seed, judge)
            beside[some.name] = some.says, of_it
    flat = figures | {f"{n}.{key}": v for n, (_, fs) in beside.items() for key, v in fs.items()}
    findings = diagnose(flat)
    written = {**flat, "findings": [{"part": f.part, "says": f.says} for f in findings]}
    write_text(run.path / "evaluation.json", json.dumps(written, indent=2, allow_nan=True) + "\n")
    console = Console(file=sys.stdout, highlight=False)
    console.width = max(console.width, WIDTH)
    columns = dict(beside.values())
    console.print(evaluation_table(run.path.name, figures, columns, judge.says))
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    if not findings:
        sys.stdout.write("No part stands out.\n")
    sys.stdout.write(f"\nfigures  {run.path / 'evaluation.json'}\n")
    return 0


@torch.no_grad()
def measured(
    sae: SAE, source: Source, tokens: int, seed: int, judge: Judge, *, downstream: bool = False
) -> dict[str, Any]:
    """`sae.evaluation.evaluate` and `sae.evaluation.registry`, and what this width allows for;
    flat."""
    options = {} if downstream else {"downstream_tokens": 0}
    firing, sample = Firing(sae.d_sae, sae.W_dec.device), Sample()
    figures: dict[str, Any] = evaluate(
        sae, source, max_tokens=tokens, seed=seed, firing=firing, sample=sample, **options
    )
    # A score's value is of the rows it kept, or around another mean: that of all rows stands.
    figures = scores(Case(sae, source, sample, firing, judge)) | figures
    if sae.site.bind(source.widths).groups == 1:
        room = capacity(sae.d_in, sae.d_sae, figures["l0"], non_negative=not sae.sparsity.signed)
        effective = effective_dimension(torch.cov(sample.x.double().T))
        figures |= {"largest_k": room.largest_k, "delta": room.delta, "margin": room.margin}
        figures["effective_dimension"] = effective
    return figures
