"""`sweep`: a grid of autoencoders on one stream, in as many waves as memory asks for."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Callback

from sae.cli.config import Settings
from sae.cli.sweep_summary import write_results
from sae.errors import UserError
from sae.files import write_text
from sae.lightning.halving import Halving
from sae.lightning.runner import quiet, train, with_config
from sae.planner.memory import waves_for
from sae.runs.run_dir import RunDir
from sae.sweep import grid
from sae.sweep.spec import SweepSpec


def sweep(args: list[str]) -> int:
    """Train every member, write `sweep.csv`, its page and pictures; returns the exit code."""
    quiet()
    own, rest = parse(args)
    folder, asked = begin(own, rest)
    for number, members in enumerate(asked.waves, 1):
        run = RunDir(folder / f"wave-{number}")
        if run.summary.is_file():
            continue
        names = f"wave {number} of {len(asked.waves)}: {len(members)} members\n"
        sys.stdout.write(names if len(asked.waves) > 1 else "")
        code = wave(run, folder, members, asked.stop_early)
        if code or not run.summary.is_file():
            return code
    sys.stdout.write(write_results(folder, asked))
    return 0


def parse(
    args: list[str], command: str = "sweep", more: Mapping[str, Any] = MappingProxyType({})
) -> tuple[argparse.Namespace, list[str]]:
    """A sweep's own flags, with `more` of them by what argparse is told of each, and the rest."""
    parser = argparse.ArgumentParser(
        prog=f"train.py {command}",
        usage="%(prog)s [--config F] --grid KEY=V1,V2,... [--grid ...] [--seeds N] [--random N] "
        "[--stop-early] [--KEY VALUE ...]\n       %(prog)s --resume RUN",
        description="Train every combination on one stream, and say which is best.",
        epilog="Every other flag is one of `fit`, for all members.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2,...")
    parser.add_argument("--seeds", type=int, default=1, help="each combination with so many seeds")
    parser.add_argument("--random", type=int, help="so many combinations, drawn from the grid")
    parser.add_argument(
        "--stop-early",
        action="store_true",
        help="at a quarter and at half of the run, stop the worse half by held-out FVU of those "
        "with the same L0",
    )
    parser.add_argument("--memory", type=float, help="GiB that it may take; left out, what is free")
    parser.add_argument("--resume", metavar="RUN", help="go on where it ended, however it ended")
    for flag, options in more.items():
        parser.add_argument(flag, **options)
    try:
        own, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"{command}: {error}") from error
    for name in ("seeds", "random", "memory"):
        if (value := getattr(own, name)) is not None and value <= 0:
            raise UserError(f"--{name} {value}; give at least 1")
    if own.resume is not None and (rest or own.grid or own.seeds != 1):
        raise UserError(f"{command} --resume takes its settings from the sweep; give nothing else")
    return own, rest


def begin(
    own: argparse.Namespace, rest: list[str], pack: Callable = waves_for
) -> tuple[Path, SweepSpec]:
    """The folder of a sweep and what is asked of it: of one that goes on as it was written down; of
    a new one every member is checked, and it is written down.

    Args:
        own, rest: from `parse`.
        pack: given the settings of all members and `--memory`, the names of the members of each
            wave, and what to print of that.
    """
    if own.resume is not None:
        return Path(own.resume), SweepSpec.read(Path(own.resume))
    rest, _ = with_config(rest)
    base = Settings(rest, lambda config: {})
    if base.config.members:
        raise UserError("sweep makes its own members; take `members` out of the config")
    named = any(arg.split("=")[0] == "--name" for arg in rest)
    name = base.config.name if named else f"{base.config.name}-sweep"
    axes = grid.parse_axes(own.grid, own.seeds, base.config.seed)
    members = grid.expand_members(axes, at_random=own.random, seed=base.config.seed)
    every = Settings([*rest, "--members", json.dumps(members)], lambda config: {})
    waves, says = pack(every, own.memory)
    folder = Path(base.config.runs) / name
    _claim(folder, overwrite=base.config.overwrite)
    sys.stdout.write(f"{says}\n")
    sys.stdout.flush()
    folder.mkdir(parents=True, exist_ok=True)
    base.config.name = name
    text = base.parser.dump(base.config, skip_unset=False, skip_link_targets=True)
    write_text(folder / "config.yaml", text)
    asked = SweepSpec(list(axes), [{n: members[n] for n in wave} for wave in waves], own.stop_early)
    asked.write(folder)
    return folder, asked


def _claim(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write over what is there, or with `overwrite` remove it."""
    if not (folder / "config.yaml").exists():
        return
    if not overwrite:
        raise UserError(
            f"{folder} is there already; go on with `sweep --resume {folder}`, choose another "
            "--name, or --overwrite true"
        )
    shutil.rmtree(folder)


def wave(
    run: RunDir,
    folder: Path,
    members: dict[str, Any],
    stop_early: bool,
    callbacks: Sequence[Callback] = (),
) -> int:
    """One run; from its last checkpoint where it has one. Returns the exit code."""
    others = lambda changes: json.dumps({k: v for k, v in changes.items() if k != grid.SEED})
    if stop_early:
        callbacks = [*callbacks, Halving({n: others(c) for n, c in members.items()})]
    options = {"sweep": folder, "callbacks": callbacks}
    if run.checkpoints():
        return train(["--config", str(run.config)], run, **options)
    args = ["--config", str(folder / "config.yaml"), "--runs", str(folder)]
    args += ["--name", run.path.name, "--overwrite", "true", "--members", json.dumps(members)]
    return train(args, None, **options)
