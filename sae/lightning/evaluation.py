"""`evaluate`: figures of a finished run beside its controls, and which part holds it back."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sae.activations import Source
from sae.autoencoder import SAE
from sae.errors import UserError
from sae.files import write_text
from sae.lightning.controls import siblings, train
from sae.lightning.fit import quiet
from sae.lightning.run import RunFolder
from sae.lightning.settings import Settings
from sae.metrics.amortisation import amortisation_gap, inference_or_dictionary
from sae.metrics.bootstrap import Score, bootstrap_score
from sae.metrics.capacity import capacity, effective_dimension
from sae.metrics.diagnosis import diagnose
from sae.metrics.dictionary import c_dec
from sae.metrics.evaluate import evaluate

ROWS = 2048
# Of them, for the best codes: as many as make this many numbers of codes, since 256 rows of 8,192
# latents take 24 seconds of one core.
GAP_NUMBERS, GAP_ROWS = 2**21, 256


def evaluate_run(args: list[str]) -> int:
    """Measure, print and write `evaluation.json`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="train.py evaluate",
        usage="%(prog)s RUN [--tokens N] [--controls false]",
        description="Held-out figures of a finished run, the same of its controls, and which part "
        "of it holds it back. Written to RUN/evaluation.json too.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("run", help="its folder, such as runs/default")
    parser.add_argument("--tokens", help="held-out activations; left out, as the run was judged by")
    parser.add_argument(
        "--controls",
        default="true",
        help="false: do not train the controls, which takes about as long as the run did, each",
    )
    try:
        own = parser.parse_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"evaluate: {error}") from error
    except SystemExit as stop:  # argparse after --help, or after a complaint of its own
        return 2 if stop.code else 0
    if own.controls not in ("true", "false"):
        raise UserError(f"--controls {own.controls}; give true or false")
    if own.tokens is not None and not (own.tokens.isdigit() and int(own.tokens)):
        raise UserError(f"--tokens {own.tokens} is not a number of activations")
    run = RunFolder(own.run)
    if not (run.path / "sae").is_dir() or not run.config.is_file():
        raise UserError(
            f"{run.path} holds no finished run; finish it with `fit --resume {run.path}`, or give "
            "the folder of another"
        )
    quiet()
    settings = Settings(["--config", str(run.config)], lambda config: {})
    module, data, trainer = settings.model, settings.datamodule, settings.trainer
    device = trainer.strategy.root_device
    data.source.setup(device)
    sae = SAE.load(run.path / "sae", device=device)
    tokens = int(own.tokens or data.held_out_tokens)
    figures: dict[str, Any] = measured(sae, data.source, tokens, data.seed, downstream=True)
    summary = json.loads(run.summary.read_text(encoding="utf-8")) if run.summary.is_file() else {}
    if "dead_fraction" in summary.get("training", {}):
        figures["dead_fraction"] = summary["training"]["dead_fraction"]
    beside: dict[str, tuple[str, dict[str, Any]]] = {}
    if own.controls == "true" and module.whole_contexts:
        sys.stdout.write("no controls: end-to-end terms need the model's own passes\n")
    elif own.controls == "true":
        found = siblings(module, data.source, data.batch_size * data.block_batches)
        names = ", ".join(some.name for some in found)
        sys.stdout.write(f"training {len(found)} controls ({names}); --controls false: none\n")
        sys.stdout.flush()
        train(found, data, trainer.max_steps, device)
        for some in found:
            assert some.sae is not None
            beside[some.name] = some.says, measured(some.sae, some.source, tokens, data.seed)
    flat = figures | {f"{n}.{key}": v for n, (_, fs) in beside.items() for key, v in fs.items()}
    findings = diagnose(flat)
    written = {**flat, "findings": [{"part": f.part, "says": f.says} for f in findings]}
    write_text(run.path / "evaluation.json", json.dumps(written, indent=2, allow_nan=True) + "\n")
    Console(file=sys.stdout, highlight=False).print(table(run.path.name, figures, beside))
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    if not findings:
        sys.stdout.write("No part stands out.\n")
    sys.stdout.write(f"\nfigures  {run.path / 'evaluation.json'}\n")
    return 0


@torch.no_grad()
def measured(
    sae: SAE, source: Source, tokens: int, seed: int, *, downstream: bool = False
) -> dict[str, Any]:
    """`sae.metrics.evaluate` and what else a diagnosis needs, flat: how much better its codes could
    be, what this width allows for, how much direction latents share."""
    options = {} if downstream else {"downstream_tokens": 0}
    figures: dict[str, Any] = evaluate(sae, source, max_tokens=tokens, seed=seed, **options)
    figures["c_dec"] = c_dec(sae.W_dec)
    site = sae.site.bind(source.widths)
    block = source.block("held_out", 0, min(tokens, ROWS), seed)
    x, y = site.pair({hook: block.acts[hook].to(sae.W_dec) for hook in site.hooks})
    score = fvu_score(y, sae.decode(sae.encode(x), x))
    figures |= {"fvu_low": score.low, "fvu_high": score.high}
    if site.groups == 1:
        room = capacity(sae.d_in, sae.d_sae, figures["l0"], non_negative=not sae.sparsity.signed)
        effective = effective_dimension(torch.cov(x.double().T))
        figures |= {"largest_k": room.largest_k, "delta": room.delta, "margin": room.margin}
        figures["effective_dimension"] = effective
    if sae.rebuilds:
        x = x[: max(GAP_ROWS, GAP_NUMBERS // sae.d_sae)]
        gap = amortisation_gap(sae, x)
        figures |= {f"gap.{name}": value for name, value in gap.figures().items()}
        if hasattr(source, "truth") and hasattr(source, "codes"):
            z = source.codes("held_out", 0, len(block), seed)
            z = z.rows(slice(0, len(x)))
            split = inference_or_dictionary(sae, x, z, source.truth)
            figures |= split.figures()
    return figures


def fvu_score(y: Tensor, y_hat: Tensor) -> Score:
    """FVU of rows [n, d] with its bootstrap interval over rows; tokens of one text hang together,
    so it is too narrow."""
    error = (y - y_hat).double().square().sum(1)
    spread = (y - y.mean(0)).double().square().sum(1)
    ratio = lambda a, b, axis: a.mean(axis) / b.mean(axis)
    return bootstrap_score(error, spread, statistic=ratio)


SHOWN = (
    ("FVU (0 is a perfect copy)", "fvu", ".4f"),
    ("  best codes for its dictionary", "best", ".4f"),
    ("L0, latents per token", "l0", ".1f"),
    ("c_dec, mean |cosine| of latents", "c_dec", ".4f"),
    ("latents that never fired", "never_fired_fraction", ".1%"),
    ("dictionary MCC with the truth", "dictionary_mcc_signed", ".3f"),
    ("  chance", "dictionary_mcc_signed_chance", ".3f"),
    ("code MCC: its own codes", "code_mcc_own", ".3f"),
    ("  best codes for its dictionary", "code_mcc_best", ".3f"),
    ("  best codes for the true one", "code_mcc_true", ".3f"),
    ("loss recovered, 0 at zeros", "loss_recovered", ".3f"),
    ("KL with the SAE in place", "kl_sae", ".3f"),
    ("dimensions this L0 needs", "delta", ".0f"),
    ("  those there are, over it", "margin", ".2f"),
    ("largest L0 they allow for", "largest_k", ".0f"),
)


def table(
    name: str, figures: dict[str, Any], beside: dict[str, tuple[str, dict[str, Any]]]
) -> Table:
    page = Table(title=f"{name}, {figures['tokens']:,} held-out activations", title_justify="left")
    page.add_column("")
    page.add_column("this run", justify="right")
    for says, _ in beside.values():
        page.add_column(says, justify="right")
    columns = [figures, *(some for _, some in beside.values())]
    for label, key, form in SHOWN:
        values = [_value(column, key) for column in columns]
        if any(value is not None for value in values):
            page.add_row(label, *("" if v is None else format(v, form) for v in values))
    page.caption = (
        f"95% of resampled tokens: FVU {figures['fvu_low']:.4f} to {figures['fvu_high']:.4f}"
    )
    page.caption_justify = "left"
    return page


def _value(figures: dict[str, Any], key: str) -> float | None:
    if key == "best":  # on the rows that were solved, carried over to all of them
        if "gap.fvu" not in figures:
            return None
        return figures["fvu"] * figures["gap.fvu_best"] / figures["gap.fvu"]
    return figures.get(key)
