"""`plan`: what a run or a sweep takes, before anything starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt
from rich.console import Console

from sae.cli.command import CommandParser
from sae.errors import UserError
from sae.files import write_text

if TYPE_CHECKING:
    from sae.planner.estimate import Plan
    from sae.training.run_settings import RunSettings


def parser() -> CommandParser:
    """Return the parser of `plan`'s own flags."""
    parser = CommandParser(
        "plan",
        usage="[--config FILE] [--grid KEY=V1,V2,... ...] [--gpu NAME] [--json FILE] "
        "[--KEY VALUE ...]",
        description="Predict parameters, memory, FLOPs, bytes and time of a run or a sweep before "
        "it starts: timed by a short pilot on this machine or, with --gpu, calculated from a GPU's "
        "data sheet.",
        example="python train.py plan --config configs/gpt2.yaml --gpu h100",
        run_settings=True,
    )
    add = parser.add_argument
    add("--gpu", type=str, help="lower bounds for this GPU, not measured, such as h100")
    add("--json", type=Path, help="also write the numbers to this file")
    add("--grid", action="append", default=[], metavar="KEY=V1,V2,...", help="as for `sweep`")
    add("--seeds", type=PositiveInt, default=1, help="as for `sweep`")
    add("--random", type=PositiveInt, help="as for `sweep`")
    add("--memory", type=PositiveFloat, metavar="GIB", help="as for `sweep`")
    return parser


def run(options: Namespace, settings: list[str]) -> int:
    """Print what a run would take, and write it to a file if asked; returns the exit code."""
    from sae.cli.plan_table import tables
    from sae.planner.cost_model import named_gpu
    from sae.planner.estimate import planned
    from sae.planner.memory import waves_for

    if options.gpu is not None:
        named_gpu(options.gpu)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UserError(
            f"--json {options.json}: there is no folder {options.json.absolute().parent}"
        )
    sweeps = bool(options.grid) or options.seeds > 1
    planned_run = _settings(options, settings, sweeps)
    waves, says = None, None
    if options.gpu is None:  # waves are of this machine's memory, and so is what does not fit
        waves, says = waves_for(planned_run, options.memory)
    found = planned(planned_run, options.gpu, waves if sweeps else None)
    if options.json is not None:
        write_text(options.json, json.dumps(found.figures(), indent=2) + "\n")
    console = Console(file=sys.stdout, highlight=False)
    for table in tables(planned_run.name, found):
        console.print(table)
    for note in [*([says] if says else []), *notes(found, planned_run)]:
        sys.stdout.write(f"{note}\n")
    return 0


def _settings(options: Namespace, flags: list[str], sweeps: bool) -> RunSettings:
    """Return the settings of the run, or of a run of all members of the sweep."""
    from sae.cli.config import parse_config
    from sae.cli.fit import with_config
    from sae.sweep import grid

    if any(flag.split("=")[0] == "--resume" for flag in flags):
        raise UserError("plan is for a run that has not started; give its --config, not --resume")
    flags, _ = with_config(flags)
    run = parse_config(flags).run
    if not sweeps:
        return run
    if run.several:
        raise UserError("a sweep makes its own members; take `members` out of the config")
    axes = grid.parse_axes(options.grid, options.seeds, run.data.seed)
    members = grid.expand_members(axes, at_random=options.random, seed=run.data.seed)
    return parse_config([*flags, "--members", json.dumps(members)]).run


def notes(plan: Plan, settings: RunSettings) -> list[str]:
    """What to know beside the tables."""
    found = []
    if plan.harvest.flops:
        found.append(f"one activation takes the model {plan.harvest.flops / 1e6:.0f} MFLOP")
    if plan.gpu is not None:
        found.append(
            f"times are a floor by {plan.gpu}'s data sheet, and unmeasured: no launches, no "
            "figures at the end"
        )
    else:
        found.append("times are of this machine as busy as it is now, with no latent dead")
    if any(recipe.sparsity.needs_penalty for recipe in settings.members.values()):
        found.append("of a penalised rule, as long as half of its latents fire: an upper bound")
    return found
