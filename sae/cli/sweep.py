"""The command `sweep`: train a grid of SAEs on one stream, in waves that fit into memory."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

from sae.cli.command import CommandParser
from sae.errors import UserError
from sae.files import write_text
from sae.runs.run_dir import RunDir
from sae.sweep import grid
from sae.sweep.spec import SweepSpec

if TYPE_CHECKING:
    from lightning.pytorch import Callback


def parser() -> CommandParser:
    """Return the parser of `sweep`'s own flags."""
    parser = CommandParser(
        "sweep",
        usage="[--config FILE] --grid KEY=V1,V2,... [--grid ...] [--seeds N] [--random N] "
        "[--stop-early] [--KEY VALUE ...]\n       train.py sweep --resume RUN",
        description="Train every combination of settings on the same activations, and say which "
        "is best.",
        example="python train.py sweep --config configs/worlds/superposition.yaml "
        "--grid model.sae.k=4,6,8 --seeds 2",
        run_settings=True,
    )
    add_sweep_flags(parser)
    return parser


def add_sweep_flags(parser: CommandParser) -> None:
    """Add the flags that `sweep` and `tune` share."""
    add = parser.add_argument
    add("--grid", action="append", default=[], metavar="KEY=V1,V2,...", help="values of a setting")
    add("--seeds", type=PositiveInt, default=1, help="train each combination with N seeds")
    add("--random", type=PositiveInt, help="draw N combinations from the grid")
    parser.add_switch(
        "--stop-early",
        help="at a quarter and at half of the run, stop the worse half, by held-out FVU among "
        "members with the same L0",
    )
    add("--memory", type=PositiveFloat, metavar="GIB", help="memory to use; default: what is free")
    add("--resume", type=str, metavar="RUN", help="continue the sweep in this folder")


def run(options: Namespace, settings: list[str]) -> int:
    """Train every member and write the results; return the exit code."""
    from sae.cli.sweep_summary import write_results

    folder, spec = begin(options, settings)
    for number, members in enumerate(spec.waves, 1):
        run = RunDir(folder / f"wave-{number}")
        if run.summary.is_file():
            continue
        title = f"wave {number} of {len(spec.waves)}: {len(members)} members\n"
        sys.stdout.write(title if len(spec.waves) > 1 else "")
        code = train_wave(run, folder, members, spec.stop_early)
        if code or not run.summary.is_file():
            return code
    sys.stdout.write(write_results(folder, spec))
    return 0


def begin(
    options: Namespace, settings: list[str], pack: Callable | None = None
) -> tuple[Path, SweepSpec]:
    """Return the folder of a sweep and its members, after checking the settings of each.

    A sweep that continues is read from its folder; a new one is written there.

    Args:
        options: The values of the sweep's own flags.
        settings: The flags that set up a run.
        pack: Given the settings of a run of all members and `--memory`, returns the names of the
            members of each wave and a line to print; `pack_waves` by default.
    """
    from sae.cli.config import parse_config
    from sae.cli.fit import with_config
    from sae.lightning.runner import yaml_of
    from sae.planner.memory import pack_waves
    from sae.progress import progress

    if options.resume is not None:
        if settings or options.grid or options.seeds != 1:
            raise UserError("--resume takes its settings from the sweep; give nothing else")
        return Path(options.resume), SweepSpec.read(Path(options.resume))
    settings, _ = with_config(settings)
    base = parse_config(settings)
    if base.run.several:
        raise UserError("sweep makes its own members; remove `members` from the config")
    named = any(arg.split("=")[0] == "--name" for arg in settings)
    name = base.run.name if named else f"{base.run.name}-sweep"
    axes = grid.parse_axes(options.grid, options.seeds, base.run.data.seed)
    members = grid.expand_members(axes, at_random=options.random, seed=base.run.data.seed)
    every = parse_config([*settings, "--members", json.dumps(members)])
    with progress("planning memory"):
        waves, waves_line = (pack or pack_waves)(every.run, options.memory)
    folder = base.run.runs / name
    _make_way(folder, overwrite=base.options.overwrite)
    sys.stdout.write(f"{waves_line}\n")
    sys.stdout.flush()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml_of(base.run.config | {"name": name}))
    spec = SweepSpec(
        list(axes), [{n: members[n] for n in wave} for wave in waves], options.stop_early
    )
    spec.write(folder)
    return folder, spec


def _make_way(folder: Path, *, overwrite: bool) -> None:
    """Remove an existing sweep if `overwrite`, else raise UserError for it."""
    if not (folder / "config.yaml").exists():
        return
    if not overwrite:
        raise UserError(
            f"{folder} exists already; continue it with `sweep --resume {folder}`, choose another "
            "--name, or replace it with --overwrite"
        )
    shutil.rmtree(folder)


def train_wave(
    run: RunDir,
    folder: Path,
    members: dict[str, Any],
    stop_early: bool,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Train the members of a wave in one run, and return its exit code.

    A run that has a checkpoint continues from its last one.

    Args:
        run: Folder of the run.
        folder: Folder of the sweep.
        members: The members of the wave: name to {setting: value}.
        stop_early: Whether the worse half stops during the run.
        callbacks: Further Lightning callbacks.
    """
    from sae.cli.fit import train_from_flags
    from sae.lightning.halving import Halving

    without_seed = lambda changes: json.dumps(
        {key: value for key, value in changes.items() if key != grid.SEED}
    )
    if stop_early:
        callbacks = [*callbacks, Halving({n: without_seed(c) for n, c in members.items()})]
    options = {"sweep": folder, "callbacks": callbacks}
    if run.checkpoints():
        return train_from_flags(["--config", str(run.config)], resume=run.path, **options)
    args = ["--config", str(folder / "config.yaml"), "--runs", str(folder)]
    args += ["--name", run.path.name, "--overwrite", "--members", json.dumps(members)]
    return train_from_flags(args, **options)
