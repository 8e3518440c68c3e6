"""The command line: `python train.py`, `sae fit ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from sae.errors import UserError

OVERVIEW = """\
Train sparse autoencoders on streamed activations of real models.

  python train.py                                   the default run (configs/default.yaml)
  python train.py fit --config F [--KEY VALUE ...]  any other run; every key of the YAML is a flag
  python train.py fit --resume runs/x               go on where a run ended, however it ended
  python train.py sweep --config F --grid model.sae.k=16,32 --grid model.optim.lr=1e-4,1e-3
                                                    every combination on one stream, side by side
  python train.py tune --config F --grid ...        the same through Ray Tune, a trial for each
  python train.py plan --config F [--grid ...]      what either takes: memory, FLOPs, time
  python train.py report runs/x [curves.png]        draw report.html again, and its curves
  python train.py evaluate runs/x                   figures beside controls, and what holds it back
  python train.py identify --config F               is what a network represents linear in z?
  python train.py fit --help                        every setting, explained
  python train.py fit --config F --print_config     the resolved settings, as YAML

Often used:
  --name NAME              where it goes: runs/NAME          --overwrite true   replace a run there
  --model.sae.d_sae N      number of latents                 --seed N           of everything
  --model.sae.k N          how many fire at once             --trainer.max_steps N
  --model.optim.lr X       learning rate                     --data.batch_size N
  --data.source.model M    Hugging Face id or folder         --data.source.hooks [layers.3]
  --wandb offline|online   Weights & Biases                  --tensorboard true
  --debug                  show tracebacks

`sae` is the same program as `python train.py`. A wrong setting ends with exit code 2.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input, 130 stopped by the user."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if args and args[0] in ("-h", "--help", "help"):
        sys.stdout.write(OVERVIEW)
        return 0
    command = "fit" if not args or args[0].startswith("-") else args.pop(0)
    try:
        # Imported late: `--help` should not wait for torch and lightning.
        if command == "fit":
            return import_module("sae.lightning.runner").fit(args)
        if command == "sweep":
            return import_module("sae.cli.sweep").sweep(args)
        if command == "tune":
            return import_module("sae.cli.tune").tune(args)
        if command == "plan":
            return import_module("sae.cli.plan").plan(args)
        if command == "report":
            return _report(args)
        if command == "evaluate":
            return import_module("sae.cli.evaluate").evaluate_run(args)
        if command == "identify":
            return import_module("sae.cli.identify").identify(args)
        known = "fit, sweep, tune, plan, report, evaluate, identify"
        raise UserError(f"command {command!r} is not known; there are: {known}")
    except (UserError, OSError) as error:  # OSError: a disk that is full, a folder not ours
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        return 2


def _report(args: list[str]) -> int:
    from sae.browser import curves_png, write_report

    if not 1 <= len(args) <= 2:
        raise UserError("report takes the folder of a run, and perhaps a .png for its curves")
    sys.stdout.write(f"{write_report(Path(args[0]))}\n")
    if len(args) == 2:
        curves_png(Path(args[0]), Path(args[1]))
        sys.stdout.write(f"{args[1]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
