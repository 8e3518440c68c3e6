"""`identify`: step 1 on a world that has a network of its own, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sae.activations import LabelledNetwork
from sae.cli.config import Settings
from sae.errors import UserError
from sae.files import write_text
from sae.lightning.runner import quiet
from sae.metrics.identifiability import Identification, Labelled
from sae.metrics.identifiability import identify as measure


def identify(args: list[str]) -> int:
    """Measure, print, and write where told; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="train.py identify",
        usage="%(prog)s --config FILE [--samples N] [--json FILE] [--data.source.KEY VALUE ...]",
        description="Is what a classifier represents linear in the latents behind its data? On a "
        "world with a network of its own, such as configs/worlds/nonlinear.yaml.",
        allow_abbrev=False,
    )
    parser.add_argument("--samples", default="8192", help="half to fit on, half to score on")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    quiet()
    own, rest = parser.parse_known_args(args)
    if not any(arg.split("=")[0] in ("--config", "-c") for arg in rest):
        raise UserError("identify needs --config FILE, such as configs/worlds/nonlinear.yaml")
    if not own.samples.isdigit():
        raise UserError(f"--samples {own.samples} is not a number of samples; 8192 is customary")
    if own.json is not None and not own.json.absolute().parent.is_dir():
        raise UserError(f"--json {own.json}: there is no folder {own.json.absolute().parent}")
    config = Settings(rest, lambda config: {})
    source = config.datamodule.source
    network = source.labelled_network()
    if network is None:
        raise UserError(
            f"data.source={type(source).__name__} has no network that could identify anything; "
            f"give a config with NonlinearMixing, such as configs/worlds/nonlinear.yaml"
        )
    found = identification(network, int(own.samples), config.datamodule.seed)
    if own.json is not None:
        text = json.dumps({**found.figures(), "source": source.metadata()}, indent=2)
        write_text(own.json, text + "\n")
    Console(file=sys.stdout, highlight=False).print(table(found))
    for warning in found.warnings:
        sys.stdout.write(f"WARNING: {warning}\n")
    return 0


def identification(source: LabelledNetwork, samples: int, seed: int) -> Identification:
    """`sae.metrics.identifiability` on held-out samples of `source`, with all controls."""
    z, labels = source.sample("held_out", 0, samples, seed)
    twin = source.with_network_seed(source.metadata()["network_seed"] + 1)
    return measure(
        source.network,
        Labelled(source.mixing(z), z, labels),
        untrained=source.untrained_network(),
        twin=twin.network,
        untrained_twin=twin.untrained_network(),
        logits=source.network.logits,
        classes=source.classes,
        scale=source.expected_scale,
    )


def table(found: Identification) -> Table:
    page = Table(title=f"Linear identifiability on {found.samples:,} samples", title_justify="left")
    for heading in ("R2 of the best linear map", "trained", "untrained", "raw data", "at most"):
        page.add_column(heading, justify="left" if heading.startswith("R2") else "right")
    show = lambda value: "" if value is None else f"{value:.3f}"
    f = found
    rows = [
        ("latents → representation y", f.z_to_y, f.z_to_y_untrained, f.z_to_x, 1.0),
        ("representation → latents", f.y_to_z, f.y_to_z_untrained, f.x_to_z, f.y_to_z_ceiling),
        ("between two seeds, both ways", f.cross_seed, f.cross_seed_untrained, None, 1.0),
    ]
    for name, *values in rows:
        page.add_row(name, *map(show, values))
    page.add_section()
    page.add_row("orthogonality error (0 is best)", show(f.orthogonality_error))
    page.add_row(f"classifier: loss (chance {show(f.chance_loss)})", show(f.loss))
    page.add_row("  accuracy", show(f.accuracy))
    page.add_row("  share of y the label explains", show(f.label_share))
    return page
