"""The command `plan`: predict the memory and time of a run or a sweep before it starts."""

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
    add("--json", type=str, metavar="FILE", help="also write the numbers to this file")
    add("--grid", action="append", default=[], metavar="KEY=V1,V2,...", help="as for `sweep`")
    add("--seeds", type=PositiveInt, default=1, help="as for `sweep`")
    add("--random", type=PositiveInt, help="as for `sweep`")
    add("--memory", type=PositiveFloat, metavar="GIB", help="as for `sweep`")
    return parser


def run(options: Namespace, settings: list[str]) -> int:
    """Print the plan of a run, and write it to a file if asked; return the exit code."""
    from sae.cli.plan_table import plan_tables
    from sae.planner.cost_model import find_gpu
    from sae.planner.estimate import make_plan
    from sae.planner.memory import pack_waves
    from sae.progress import progress

    if options.gpu is not None:
        find_gpu(options.gpu)
    file = None if options.json is None else Path(options.json)
    if file is not None and not file.absolute().parent.is_dir():
        raise UserError(f"--json {file}: there is no folder {file.absolute().parent}")
    is_sweep = bool(options.grid) or options.seeds > 1
    planned_run = _settings(options, settings, is_sweep)
    waves, waves_line = None, None
    with progress("planning" if options.gpu else "planning with a short pilot"):
        if options.gpu is None:  # with a GPU, the memory of this machine does not matter
            waves, waves_line = pack_waves(planned_run, options.memory)
        plan = make_plan(planned_run, options.gpu, waves if is_sweep else None)
    if file is not None:
        write_text(file, json.dumps(plan.to_dict(), indent=2) + "\n")
    console = Console(file=sys.stdout, highlight=False)
    for table in plan_tables(planned_run.name, plan):
        console.print(table)
    for note in [*([waves_line] if waves_line else []), *notes(plan, planned_run)]:
        sys.stdout.write(f"{note}\n")
    return 0


def _settings(options: Namespace, flags: list[str], is_sweep: bool) -> RunSettings:
    """Return the settings of the run, or of a run of all members of the sweep."""
    from sae.cli.config import parse_config
    from sae.cli.fit import with_config
    from sae.sweep import grid

    if any(flag.split("=")[0] == "--resume" for flag in flags):
        raise UserError("plan is for a run that has not started; give its --config, not --resume")
    flags, _ = with_config(flags)
    run = parse_config(flags).run
    if not is_sweep:
        return run
    if run.several:
        raise UserError("a sweep makes its own members; remove `members` from the config")
    axes = grid.parse_axes(options.grid, options.seeds, run.data.seed)
    members = grid.expand_members(axes, at_random=options.random, seed=run.data.seed)
    return parse_config([*flags, "--members", json.dumps(members)]).run


def notes(plan: Plan, settings: RunSettings) -> list[str]:
    """Return the assumptions behind the numbers in the tables."""
    notes = []
    if plan.harvest.flops:
        notes.append(f"the model takes {plan.harvest.flops / 1e6:.0f} MFLOP per activation")
    if plan.gpu is not None:
        notes.append(
            f"times are lower bounds from the data sheet of {plan.gpu}, not measured: without "
            "launch overhead, and without the final metrics"
        )
    else:
        notes.append(
            "times assume that this machine stays as busy as it is now, and no dead latents"
        )
    if any(recipe.sparsity.needs_penalty for recipe in settings.members.values()):
        notes.append(
            "a rule with a penalty is counted with half of its latents active: an upper bound"
        )
    return notes
