"""`plan`: what a run or a sweep takes, before anything starts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from sae.cli.config import Settings
from sae.cli.plan_table import tables
from sae.errors import UserError
from sae.files import write_text
from sae.lightning.runner import quiet, with_config
from sae.planner.cost_model import named_gpu
from sae.planner.estimate import Plan, planned
from sae.planner.memory import waves_for
from sae.sweep import grid


def plan(args: list[str]) -> int:
    """Print what a run would take, and write it where told; returns the exit code."""
    own, rest = _parse(args)
    quiet()
    settings = _settings(own, rest)
    waves, says = None, None
    if own.gpu is None:  # waves are of this machine's memory, and so is what does not fit at all
        waves, says = waves_for(settings, own.memory)
    found = planned(settings, own.gpu, waves if own.sweeps else None)
    if own.json is not None:
        write_text(own.json, json.dumps(found.figures(), indent=2) + "\n")
    console = Console(file=sys.stdout, highlight=False)
    for table in tables(settings.config.name, found):
        console.print(table)
    for note in [*([says] if says else []), *notes(found, settings)]:
        sys.stdout.write(f"{note}\n")
    return 0


def _parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="train.py plan",
        usage="%(prog)s [--config FILE] [--grid KEY=V1,V2,... ...] [--gpu NAME] [--json FILE] "
        "[--KEY VALUE ...]",
        description="Parameters, memory, FLOPs, bytes and time of a run or a sweep, before it "
        "starts: timed by a short pilot on this machine, or, with --gpu, by what a GPU's data "
        "sheet allows.",
        epilog="--seeds, --random and --memory are those of `sweep`; every other flag is one of "
        "`fit`, --members included.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--gpu", help="a floor for this GPU, unmeasured, such as h100")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2,...")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--random", type=int)
    parser.add_argument("--memory", type=float, metavar="GIB")
    try:
        own, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"plan: {error}") from error
    for name in ("seeds", "random", "memory"):
        if (value := getattr(own, name)) is not None and value <= 0:
            raise UserError(f"--{name} {value}; give at least 1")
    if own.gpu is not None:
        named_gpu(own.gpu)
    if own.json is not None and not own.json.absolute().parent.is_dir():
        raise UserError(f"--json {own.json}: there is no folder {own.json.absolute().parent}")
    own.sweeps = bool(own.grid) or own.seeds > 1
    return own, rest


def _settings(own: argparse.Namespace, rest: list[str]) -> Settings:
    """Of the run, or of all members of the sweep."""
    rest, folder = with_config(rest)
    if folder is not None:
        raise UserError("plan is of a run that has not begun; give its --config, not --resume")
    settings = Settings(rest, lambda config: {})
    if settings.trainer.max_steps < 1:
        steps = settings.trainer.max_steps
        raise UserError(f"trainer.max_steps={steps}; give the length of the run in steps")
    if not own.sweeps:
        return settings
    if settings.config.members:
        raise UserError("a sweep makes its own members; take `members` out of the config")
    seed = settings.config.seed
    axes = grid.parse_axes(own.grid, own.seeds, seed)
    members = grid.expand_members(axes, at_random=own.random, seed=seed)
    return Settings([*rest, "--members", json.dumps(members)], lambda config: {})


def notes(plan: Plan, settings: Settings) -> list[str]:
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
    if any(recipe.sparsity.needs_penalty for recipe in settings.recipes.values()):
        found.append("of a penalised rule, as long as half of its latents fire: an upper bound")
    return found
