"""The command `tune`: a sweep whose waves are trials of Ray Tune, in parallel on a cluster."""

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
from sae.cli.sweep import add_sweep_flags, begin, train_wave
from sae.errors import UserError
from sae.files import write_text
from sae.runs.run_dir import RunDir
from sae.sweep.spec import SweepSpec

if TYPE_CHECKING:
    from sae.training.run_settings import RunSettings

# Last words of the settings that determine L0.
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
                f"--stop-early compares FVU at any L0, so with --grid {key} the trials with the "
                "highest L0 would win; remove one of the two (`sweep --stop-early` compares at "
                "the same L0)"
            )
    folder, spec = begin(options, settings, partial(_pack_trials, size=options.members_per_trial))
    path, code = folder.resolve(), 0
    if trials := _unfinished_trials(path, spec):
        code = _record_stopped(path, spec, trials, _run_trials(path, spec, options, trials))
    if code == STOPPED:
        sys.stderr.write(f"stopped; continue with:\n  python train.py tune --resume {folder}\n")
    else:
        sys.stdout.write(write_results(folder, spec))
    return code


def _pack_trials(
    settings: RunSettings, gib: float | None, *, size: int
) -> tuple[list[list[str]], str]:
    """Return the members of each trial, and a line to print."""
    names = list(settings.members)
    waves = [names[start : start + size] for start in range(0, len(names), size)]
    return waves, f"{len(waves)} trials of Ray Tune"


def _unfinished_trials(folder: Path, spec: SweepSpec) -> dict[str, int]:
    """Return the trials without a summary: name of the trial to number of its wave."""
    return {
        next(iter(members)) if len(members) == 1 else f"wave-{number}": number
        for number, members in enumerate(spec.waves, 1)
        if not _wave_folder(folder, number).summary.is_file()
    }


def _wave_folder(folder: Path, number: int) -> RunDir:
    return RunDir(folder / f"wave-{number}")


def _run_trials(folder: Path, spec: SweepSpec, options: Namespace, trials: dict[str, int]) -> Any:
    """Let Ray run trials; return its results in their order."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import torch
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler

    trainer = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    steps, every = trainer["max_steps"], trainer["val_check_interval"]
    gpus = options.gpus_per_trial
    resources = {
        "cpu": options.cpus_per_trial,
        "gpu": float(torch.cuda.is_available()) if gpus is None else gpus,
    }
    # Do not stop trials at the last step, because the final metrics come after it.
    asha = partial(ASHAScheduler, time_attr="step", stop_last_trials=False)
    scheduler = asha(max_t=steps, grace_period=max(every, steps // 4), reduction_factor=2)
    trial = ray_tune.with_parameters(
        _trial, folder=str(folder), numbers=trials, cwd=str(Path.cwd())
    )
    ray.init(address=os.environ.get("RAY_ADDRESS", "local"))
    try:
        return ray_tune.Tuner(
            ray_tune.with_resources(trial, resources),
            param_space={"trial": ray_tune.grid_search(list(trials))},
            tune_config=ray_tune.TuneConfig(
                metric="held_out_fvu",
                mode="min",
                scheduler=scheduler if spec.stop_early else None,
            ),
            run_config=ray_tune.RunConfig(name="ray", storage_path=str(folder), verbose=1),
        ).fit()
    finally:
        ray.shutdown()


def _record_stopped(folder: Path, spec: SweepSpec, trials: dict[str, int], results: Any) -> int:
    """Write summaries for the members of trials that did not reach the end.

    A trial that failed runs again when the sweep is resumed; one that Ray stopped does not.

    Returns:
        The exit code.
    """
    unfinished = [
        (number, result)
        for number, result in zip(trials.values(), results, strict=True)
        if not _wave_folder(folder, number).summary.is_file()
    ]
    # The last report of a trial says `done` if ASHA stopped it, but not if Ctrl-C did.
    if any(not (r.error or (r.metrics or {}).get("done")) for _, r in unfinished):
        return STOPPED
    for number, result in unfinished:
        reason = "stopped early by Ray"
        if result.error is not None:
            reason = f"failed: {' '.join(str(result.error.args[0]).split())[-200:]}"
        run, step = _wave_folder(folder, number), (result.metrics or {}).get("step", 0)
        summaries = [{"name": n, "stopped": reason, "steps": step} for n in spec.waves[number - 1]]
        for summary in summaries:
            member = run.member(summary["name"])
            member.path.mkdir(parents=True, exist_ok=True)
            write_text(member.summary, json.dumps(summary, indent=2) + "\n")
        if result.error is None:
            text = json.dumps({"name": run.path.name, "members": summaries}) + "\n"
            write_text(run.summary, text)
    return 1 if results.errors else 0


def _trial(config: dict[str, str], *, folder: str, numbers: dict[str, int], cwd: str) -> None:
    """Train one wave of the sweep in `folder`, in a process of Ray."""
    from sae.lightning.ray_report import RayReport

    os.chdir(
        cwd
    )  # Ray changes to a folder of the trial, but paths in configs are relative to this one
    number = numbers[config["trial"]]
    members = SweepSpec.read(Path(folder)).waves[number - 1]
    code = train_wave(
        _wave_folder(Path(folder), number), Path(folder), members, False, [RayReport()]
    )
    if code:
        raise RuntimeError(f"the run of {config['trial']} ended with exit code {code}")
