"""The command line: `python train.py`, `sae fit ...`, and the table of its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from sae.cli.command import Command
from sae.cli.config_errors import near
from sae.errors import UserError
from sae.progress import progress

COMMANDS = {
    "fit": Command(
        "sae.cli.fit",
        "fit --config F [--KEY VALUE ...]",
        "train; every key of the YAML file is a flag",
    ),
    "sweep": Command(
        "sae.cli.sweep",
        "sweep --config F --grid model.sae.k=16,32",
        "train every combination on the same activations",
    ),
    "tune": Command("sae.cli.tune", "tune --config F --grid ...", "the same as trials of Ray Tune"),
    "plan": Command("sae.cli.plan", "plan --config F [--grid ...]", "predict memory and time"),
    "evaluate": Command(
        "sae.cli.evaluate",
        "evaluate runs/x",
        "metrics beside baselines, and what limits the run",
    ),
    "report": Command(
        "sae.cli.report",
        "report runs/x [curves.png]",
        "write report.html again, and a picture of its curves",
        loads="sae.browser",
    ),
    "identify": Command(
        "sae.cli.identify",
        "identify --config F",
        "test if a network represents true features linearly",
    ),
}

_OVERVIEW = """\
Train sparse autoencoders on streamed activations of real models.

  python train.py                          the default run (configs/default.yaml)
  python train.py COMMAND --help           about one command; `fit --help` lists every setting

Commands:
{commands}

Often used with fit:
  --resume runs/x          continue an interrupted run
  --name NAME              run folder: runs/NAME        --overwrite      replace a run there
  --model.sae.d_sae N      number of latents            --seed N         seed of everything
  --model.sae.k N          active latents per token     --trainer.max_steps N
  --model.optim.lr X       learning rate                --data.batch_size N
  --data.source.model M    Hugging Face id or folder    --data.source.hooks [layers.3]
  --wandb offline|online   Weights & Biases             --tensorboard
  --print_config           print all settings as YAML   --debug          show tracebacks

`sae` is the same program as `python train.py`. A wrong setting ends with exit code 2.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 if done, 2 for invalid input, 130 if the user stopped it.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if args and args[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    name = "fit" if not args or args[0].startswith("-") else args.pop(0)
    try:
        if name not in COMMANDS:
            raise UserError(f"command {name!r} is not known{near(name, list(COMMANDS))}")
        with progress("loading"):
            command = import_module(COMMANDS[name].module)
        options, settings = command.parser().read(args)
        with progress("loading PyTorch and Lightning"):
            import_module(COMMANDS[name].loads)
        return command.run(options, settings)
    except KeyboardInterrupt:
        if debug:
            raise
        # A terminal has written ^C at the start of this line.
        sys.stderr.write("\n" * sys.stderr.isatty() + "stopped by the user\n")
        return 130
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that is not ours
        if debug:
            raise
        message = error.message if isinstance(error, UserError) else str(error)
        sys.stderr.write(f"error: {message}\n")
        return 2


def overview() -> str:
    """Return what `--help` prints: the commands, and the flags used most."""
    lines = [f"  {c.usage:<42} {c.summary}" for c in COMMANDS.values()]
    return _OVERVIEW.format(commands="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
