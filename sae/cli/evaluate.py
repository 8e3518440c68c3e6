"""`evaluate`: measure a finished run beside its baselines, and find which part limits it."""

from __future__ import annotations

import glob
import json
import sys
from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console

from sae.cli.command import CommandParser
from sae.errors import UserError
from sae.files import write_text
from sae.runs.run_dir import RunDir
from sae.sweep.spec import SweepSpec


def parser() -> CommandParser:
    """Return the parser of `evaluate`."""
    parser = CommandParser(
        "evaluate",
        usage="RUN [--tokens N] [--baselines false]",
        description="Held-out metrics of a finished run, each with its 95% interval and its chance "
        "level where it has one, beside the same metrics of its baselines, and which part of the "
        "run limits it. Also written to RUN/evaluation.json and RUN/report.html.",
        example="python train.py evaluate runs/default --baselines false",
    )
    parser.add_argument("run", type=str, help="run folder, such as runs/default")
    parser.add_argument(
        "--tokens", type=PositiveInt, help="held-out activations; default: as in the run"
    )
    parser.add_switch(
        "--baselines",
        "--controls",  # the name in earlier versions
        default=True,
        help="false: do not train the baselines, each of which takes about as long as the run",
    )
    return parser


def run(options: Namespace, settings: list[str]) -> int:
    """Measure, print, write `evaluation.json` and the page; return the exit code."""
    from sae.autoencoder import SAE
    from sae.browser import write_report
    from sae.cli.config import parse_config
    from sae.cli.evaluate_table import WIDTH, evaluation_table
    from sae.evaluation.with_baselines import evaluate_with_baselines

    run = RunDir(options.run)
    if not run.config.is_file():
        raise UserError(
            f"{run.path} holds no finished run; give the folder of one, such as runs/default"
        )
    if (run.path / SweepSpec.FILE).is_file():
        raise UserError(f"{run.path} is a sweep; {_members_of_sweep(run.path)}")
    run_settings = parse_config(["--config", str(run.config)]).run
    data = run_settings.data
    if run_settings.several:
        names = ", ".join(str(run.member(name).path) for name in run_settings.members)
        raise UserError(f"{run.path} holds several SAEs; give one of: {names}")
    (config,) = run_settings.members.values()
    if not (run.path / "sae").is_dir():
        raise UserError(
            f"{run.path} holds no finished run; finish it with `fit --resume {run.path}`, or give "
            "the folder of another"
        )
    device = run_settings.device
    data.source.setup(device)
    sae = SAE.load(run.path / "sae", device=device)
    summary = json.loads(run.summary.read_text(encoding="utf-8")) if run.summary.is_file() else {}
    evaluation = evaluate_with_baselines(
        sae,
        config,
        data,
        run_settings.steps,
        max_tokens=options.tokens or data.held_out_tokens,
        dead_fraction=summary.get("dead_fraction"),
        baselines=options.baselines,
    )
    file = run.path / "evaluation.json"
    write_text(file, json.dumps(evaluation.to_json(), indent=2, allow_nan=True) + "\n")
    page = write_report(run.path)
    console = Console(file=sys.stdout, highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(evaluation_table(run.path.name, evaluation))
    for finding in evaluation.findings:
        sys.stdout.write(f"{finding}\n")
    if not evaluation.findings:
        sys.stdout.write("No part stands out.\n")
    sys.stdout.write(f"\nmetrics  {file}\npage     {page}\n")
    return 0


def _members_of_sweep(folder: Path) -> str:
    """Return what to evaluate in place of a sweep: its members that have finished."""
    names = [name for wave in SweepSpec.read(folder).waves for name in wave]
    saes = [sae for name in names for sae in folder.glob(f"*/{glob.escape(name)}/sae")]
    if not saes:
        return f"none of its SAEs has finished; go on with `sweep --resume {folder}`"
    return f"give the folder of one of its SAEs: {', '.join(str(sae.parent) for sae in saes)}"
