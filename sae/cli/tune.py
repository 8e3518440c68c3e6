"""`tune`: a sweep whose waves are trials of Ray Tune, side by side on all machines of a cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

from sae.cli.command import CommandParser
from sae.cli.fit import STOPPED
from sae.cli.sweep import add_sweep_flags, begin, wave
from sae.errors import UserError
from sae.files import write_text
from sae.runs.run_dir import RunDir
from sae.sweep.spec import SweepSpec

if TYPE_CHECKING:
    from sae.training.run_settings import RunSettings

# Last words of the settings that decide L0.
_SETS_L0 = ("sae", "k", "target_l0", "coefficient", "losses")


def parser() -> CommandParser:
    """Return the parser of `tune`'s own flags."""
    parser = CommandParser(
        "tune",
        usage="[--config FILE] --grid KEY=V1,V2,... [--grid ...] [--members-per-trial N] "
        "[--KEY VALUE ...]\n       train.py tune --resume RUN",
        description="Train every combination of settings as trials of Ray Tune, on all machines of "
        "a cluster. RAY_ADDRESS names the cluster; without it Ray runs on this machine. Every "
        "machine needs this package, and the folder of the sweep under the same path. With "
        "--stop-early Ray's ASHA stops trials by their held-out FVU.",
        example="python train.py tune --config configs/worlds/superposition.yaml "
        "--grid model.optim.lr=1e-4,1e-3",
        run_settings=True,
    )
    add_sweep_flags(parser)
    add = parser.add_argument
    add(
        "--members-per-trial",
        type=PositiveInt,
        default=1,
        help="how many members share the activations, one machine and one accelerator",
    )
    add(
        "--cpus-per-trial",
        type=PositiveFloat,
        default=1.0,
        help="CPU cores of a trial; trials wait until enough are free",
    )
    add(
        "--gpus-per-trial",
        type=float,
        help="GPUs of a trial; default: one if this machine has any; with 0.25 four trials share "
        "one",
    )
    return parser


def run(options: Namespace, settings: list[str]) -> int:
    """Train every member in trials of Ray Tune, and write what `sweep` writes.

    Returns the exit code: 1 when a trial failed.
    """
    from sae.cli.sweep_summary import write_results

    if importlib.util.find_spec("ray") is None:
        raise UserError("tune needs a package that is not installed; pip install 'ray[tune]'")
    for key in (flag.partition("=")[0] for flag in options.grid if options.stop_early):
        if key.rpartition(".")[2] in _SETS_L0:
            raise UserError(
                f"--stop-early compares FVU whatever the L0, so that with {key} the least sparse "
                "would stay; leave one of the two out (`sweep --stop-early` compares at like L0)"
            )
    folder, asked = begin(options, settings, partial(_packed, size=options.members_per_trial))
    place, code = folder.resolve(), 0
    if left := _left(place, asked):
        code = _settle(place, asked, left, _run(place, asked, options, left))
    if code == STOPPED:
        sys.stderr.write(f"stopped; go on with:\n  python train.py tune --resume {folder}\n")
    else:
        sys.stdout.write(write_results(folder, asked))
    return code


def _packed(settings: RunSettings, gib: float | None, *, size: int) -> tuple[list[list[str]], str]:
    names = list(settings.members)
    waves = [names[at : at + size] for at in range(0, len(names), size)]
    return waves, f"{len(waves)} trials of Ray Tune"


def _left(folder: Path, asked: SweepSpec) -> dict[str, int]:
    """The waves that are not there yet: what a trial is called, and its number."""
    return {
        next(iter(members)) if len(members) == 1 else f"wave-{number}": number
        for number, members in enumerate(asked.waves, 1)
        if not _wave_folder(folder, number).summary.is_file()
    }


def _wave_folder(folder: Path, number: int) -> RunDir:
    return RunDir(folder / f"wave-{number}")


def _run(folder: Path, asked: SweepSpec, own: Namespace, left: dict[str, int]) -> Any:
    """Let Ray train what is left; its results, in that order."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import torch
    from ray import tune as rt

    trainer = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    steps, every = trainer["max_steps"], trainer["val_check_interval"]
    gpus = own.gpus_per_trial
    resources = {
        "cpu": own.cpus_per_trial,
        "gpu": float(torch.cuda.is_available()) if gpus is None else gpus,
    }
    # Not stopped at the last step: the figures on held-out activations come after it.
    asha = partial(rt.schedulers.ASHAScheduler, time_attr="step", stop_last_trials=False)
    scheduler = asha(max_t=steps, grace_period=max(every, steps // 4), reduction_factor=2)
    trial = rt.with_parameters(_trial, folder=str(folder), numbers=left, cwd=str(Path.cwd()))
    ray.init(address=os.environ.get("RAY_ADDRESS", "local"))
    try:
        return rt.Tuner(
            rt.with_resources(trial, resources),
            param_space={"trial": rt.grid_search(list(left))},
            tune_config=rt.TuneConfig(
                metric="held_out_fvu",
                mode="min",
                scheduler=scheduler if asked.stop_early else None,
            ),
            run_config=rt.RunConfig(name="ray", storage_path=str(folder), verbose=1),
        ).fit()
    finally:
        ray.shutdown()


def _settle(folder: Path, asked: SweepSpec, left: dict[str, int], results: Any) -> int:
    """Of trials that did not reach the end, say so in the summaries of their members; returns the
    exit code. One that failed is tried again when the sweep goes on; one that Ray stopped is not.
    """
    unfinished = [
        (number, result)
        for number, result in zip(left.values(), results, strict=True)
        if not _wave_folder(folder, number).summary.is_file()
    ]
    # What ASHA ends has a last report that says `done`; what a Ctrl-C ends has not.
    if any(not (r.error or (r.metrics or {}).get("done")) for _, r in unfinished):
        return STOPPED
    for number, result in unfinished:
        why = "stopped early by Ray"
        if result.error is not None:
            why = f"failed: {' '.join(str(result.error.args[0]).split())[-200:]}"
        run, step = _wave_folder(folder, number), (result.metrics or {}).get("step", 0)
        summaries = [{"name": n, "stopped": why, "steps": step} for n in asked.waves[number - 1]]
        for summary in summaries:
            place = run.member(summary["name"])
            place.path.mkdir(parents=True, exist_ok=True)
            write_text(place.summary, json.dumps(summary, indent=2) + "\n")
        if result.error is None:
            text = json.dumps({"name": run.path.name, "members": summaries}) + "\n"
            write_text(run.summary, text)
    return 1 if results.errors else 0


def _trial(config: dict[str, str], *, folder: str, numbers: dict[str, int], cwd: str) -> None:
    """In a process of Ray's: one wave of the sweep in `folder`."""
    from sae.lightning.ray_report import RayReport

    os.chdir(cwd)  # Ray's own is a folder of the trial; paths in a config are the user's
    number = numbers[config["trial"]]
    members = SweepSpec.read(Path(folder)).waves[number - 1]
    code = wave(_wave_folder(Path(folder), number), Path(folder), members, False, [RayReport()])
    if code:
        raise RuntimeError(f"the run of {config['trial']} ended with exit code {code}")
