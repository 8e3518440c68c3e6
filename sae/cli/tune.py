"""`tune`: a sweep whose waves are trials of Ray Tune, side by side on all machines of a cluster."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from sae.cli.config import Settings
from sae.cli.sweep import begin, parse, wave
from sae.cli.sweep_summary import write_results
from sae.errors import UserError
from sae.files import write_text
from sae.lightning.runner import STOPPED, quiet
from sae.runs.run_dir import RunDir
from sae.sweep.spec import SweepSpec

FLAGS = {
    "--members-per-trial": {
        "type": int,
        "default": 1,
        "help": "so many on one stream, one machine and one accelerator; the others elsewhere",
    },
    "--cpus-per-trial": {"type": float, "default": 1.0, "help": "cores; trials wait for free ones"},
    "--gpus-per-trial": {
        "type": float,
        "help": "as many GPUs; left out, one if this machine has any; 0.25: four trials share one",
    },
}
# Last words of the settings that decide L0.
_SETS_L0 = ("sae", "k", "target_l0", "coefficient", "losses")


def tune(args: list[str]) -> int:
    """Train every member, in trials of Ray Tune, and write what `sweep` writes; with `--stop-early`
    Ray's ASHA stops trials by their held-out FVU. Returns the exit code: 1 when a trial failed.

    RAY_ADDRESS names a cluster; without it Ray runs on this machine. Every machine needs this
    package, and the folder of the sweep under the same path.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("tune needs a package that is not here; pip install 'ray[tune]'")
    quiet()
    own, rest = parse(args, "tune", FLAGS)
    if own.members_per_trial < 1:
        raise UserError(f"--members-per-trial {own.members_per_trial}; give at least 1")
    for key in (flag.partition("=")[0] for flag in own.grid if own.stop_early):
        if key.rpartition(".")[2] in _SETS_L0:
            raise UserError(
                f"--stop-early compares FVU whatever the L0, so that with {key} the least sparse "
                "would stay; leave one of the two out (`sweep --stop-early` compares at like L0)"
            )
    folder, asked = begin(own, rest, partial(_packed, size=own.members_per_trial))
    place, code = folder.resolve(), 0
    if left := _left(place, asked):
        code = _settle(place, asked, left, _run(place, asked, own, left))
    if code == STOPPED:
        sys.stderr.write(f"stopped; go on with:\n  python train.py tune --resume {folder}\n")
    else:
        sys.stdout.write(write_results(folder, asked))
    return code


def _packed(settings: Settings, gib: float | None, *, size: int) -> tuple[list[list[str]], str]:
    names = list(settings.recipes)
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


def _run(folder: Path, asked: SweepSpec, own: argparse.Namespace, left: dict[str, int]) -> Any:
    """Let Ray train what is left; its results, in that order."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
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
    os.chdir(cwd)  # Ray's own is a folder of the trial; paths in a config are the user's
    quiet()
    number = numbers[config["trial"]]
    members = SweepSpec.read(Path(folder)).waves[number - 1]
    code = wave(_wave_folder(Path(folder), number), Path(folder), members, False, [Reports()])
    if code:
        raise RuntimeError(f"the run of {config['trial']} ended with exit code {code}")


class Reports(Callback):
    """Tells Ray Tune how the best member does, at every look at held-out activations."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from ray import tune as rt

        if not trainer.should_stop:
            names = ("held_out_fvu", "held_out_l0")
            figures = {name: trainer.callback_metrics[name].item() for name in names}
            rt.report({**figures, "step": pl_module.steps})
