"""Training at sites other than Autoencoder, from the command line to a complete run folder."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch

from sae import SAE
from sae.activations import ActivationModel
from sae.cli.fit import fit
from sae.metrics.examples import read_examples

HOOKS = [f"layers.{layer}.mlp{end}" for layer in (0, 1) for end in (".in", "")]
SITES = {
    "Transcoder": {"read": HOOKS[2], "predict": HOOKS[3]},
    "SkipTranscoder": {"read": HOOKS[2], "predict": HOOKS[3]},
    "Crosscoder": {"read": f"[{HOOKS[1]}, {HOOKS[3]}]"},
    "CrossLayerTranscoder": {
        "read": f"[{HOOKS[0]}, {HOOKS[2]}]",
        "predict": f"[{HOOKS[1]}, {HOOKS[3]}]",
    },
}
FILES = ["config.yaml", "metrics.csv", "summary.json", "sae", "checkpoints", "examples.jsonl"]
FILES += ["density.json", "report.html"]


def fvus(run: Path) -> list[float]:
    """Return the FVU of each training row."""
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["fvu"]) for row in csv.DictReader(file) if row["fvu"]]


@pytest.mark.parametrize("site", SITES)
def test_run_trains_exports_and_loads(tmp_path: Path, write_config, site: str) -> None:
    args = ["--config", str(write_config(tmp_path, family="llama")), "--runs", str(tmp_path)]
    args += ["--name", "r", "--data.source.hooks", json.dumps(HOOKS), "--model.sae.d_sae", "64"]
    args += ["--model.optim.lr", "1e-2", "--trainer.max_steps", "20", "--model.site", site]
    for name, value in SITES[site].items():
        args += [f"--model.site.{name}", value]
    assert fit(args) == 0
    run = tmp_path / "r"
    assert {file.name for file in run.iterdir()} == set(FILES)

    summary = json.loads((run / "summary.json").read_text())
    assert summary["architecture"] == f"{site}+TopK"
    held_out = summary["held_out"]
    assert summary["steps"] == 20 and 0 < held_out["fvu"] < 0.8 * fvus(run)[0]
    assert all(math.isfinite(value) for value in held_out.values())
    assert {"output_cosine", "ce_clean", "ce_sae", "ce_zero_ablation", "kl_sae"} <= set(held_out)
    assert held_out["kl_sae"] > 0

    examples = read_examples(run / "examples.jsonl")
    assert len(examples) == 64 and sum(bool(latent.examples) for latent in examples) > 16

    sae = SAE.load(run / "sae")
    hooks = re.findall(r"[\w.]+", " ".join(SITES[site].values()))
    assert sae.site.hooks == tuple(dict.fromkeys(hooks))
    reads, _, predicts = sae.metadata["hook"].partition(" -> ")
    assert reads == ", ".join(sae.site.reads)
    assert (predicts or reads) == ", ".join(sae.site.predicts)
    assert sae.metadata["hook"].split(" -> ")[0] in (run / "report.html").read_text()
    # The SAE is used as in the README.
    model = ActivationModel.load(sae.metadata["model"], list(sae.site.reads))
    x = model("w1 w2 w3 w4")
    codes = sae.encode(x)
    assert codes.batch == 4 and codes.l0().max() <= 4
    assert sae.decode(codes, x).shape == (4, sum(16 for _ in sae.site.predicts))
    assert torch.isfinite(sae.decode(codes, x)).all()
