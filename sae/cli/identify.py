"""`identify`: test whether a network represents the true features of its data linearly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.table import Table

from sae.cli.command import CommandParser
from sae.errors import UserError
from sae.files import write_text

if TYPE_CHECKING:
    from sae.activations import LabelledNetwork
    from sae.metrics.identifiability import Identification


def parser() -> CommandParser:
    """Return the parser of `identify`'s own flags."""
    parser = CommandParser(
        "identify",
        usage="--config FILE [--samples N] [--json FILE] [--data.source.KEY VALUE ...]",
        description="Test whether a classifier represents true features of its data linearly, on "
        "a world that trains one (NonlinearMixing). Prints a table.",
        example="python train.py identify --config configs/worlds/nonlinear.yaml",
        run_settings=True,
    )
    parser.add_argument(
        "--samples", type=PositiveInt, default=8192, help="half to fit on, half to score on"
    )
    parser.add_argument(
        "--json", type=str, metavar="FILE", help="also write the metrics to this file"
    )
    return parser


def run(options: Namespace, settings: list[str]) -> int:
    """Measure, print, and write to a file if asked; returns the exit code."""
    from sae.cli.config import parse_config

    if not any(arg.split("=")[0] in ("--config", "-c") for arg in settings):
        raise UserError("identify needs --config FILE, such as configs/worlds/nonlinear.yaml")
    file = None if options.json is None else Path(options.json)
    if file is not None and not file.absolute().parent.is_dir():
        raise UserError(f"--json {file}: there is no folder {file.absolute().parent}")
    config = parse_config(settings).run
    source = config.data.source
    network = source.labelled_network()
    if network is None:
        raise UserError(
            f"data.source={type(source).__name__} has no network whose representation could be "
            "identified; give a config with NonlinearMixing, such as configs/worlds/nonlinear.yaml"
        )
    result = identification(network, options.samples, config.data.seed)
    if file is not None:
        text = json.dumps({**result.metrics(), "source": source.metadata()}, indent=2)
        write_text(file, text + "\n")
    Console(file=sys.stdout, highlight=False).print(table(result))
    for warning in result.warnings:
        sys.stdout.write(f"WARNING: {warning}\n")
    return 0


def identification(source: LabelledNetwork, samples: int, seed: int) -> Identification:
    """Measure identifiability on held-out samples of a world, with all its baselines.

    Args:
        source: The world.
        samples: Number of held-out samples; half are fitted on, half scored on.
        seed: Seed of the samples.
    """
    from sae.metrics.identifiability import Labelled, identify

    z, labels = source.sample("held_out", 0, samples, seed)
    twin = source.with_network_seed(source.metadata()["network_seed"] + 1)
    return identify(
        source.network,
        Labelled(source.mixing(z), z, labels),
        untrained=source.untrained_network(),
        twin=twin.network,
        untrained_twin=twin.untrained_network(),
        logits=source.network.logits,
        classes=source.classes,
        scale=source.expected_scale,
    )


def table(result: Identification) -> Table:
    """Return the table that is printed."""
    page = Table(
        title=f"Linear identifiability on {result.samples:,} samples", title_justify="left"
    )
    for heading in ("R2 of the best linear map", "trained", "untrained", "raw data", "at most"):
        page.add_column(heading, justify="left" if heading.startswith("R2") else "right")
    show = lambda value: "" if value is None else f"{value:.3f}"
    r = result
    rows = [
        ("latents → representation y", r.z_to_y, r.z_to_y_untrained, r.z_to_x, 1.0),
        ("representation → latents", r.y_to_z, r.y_to_z_untrained, r.x_to_z, r.y_to_z_ceiling),
        ("between two seeds, both ways", r.cross_seed, r.cross_seed_untrained, None, 1.0),
    ]
    for name, *values in rows:
        page.add_row(name, *map(show, values))
    page.add_section()
    page.add_row("orthogonality error (0 is best)", show(r.orthogonality_error))
    page.add_row(f"classifier: loss (chance {show(r.chance_loss)})", show(r.loss))
    page.add_row("  accuracy", show(r.accuracy))
    page.add_row("  share of y the label explains", show(r.label_share))
    return page
