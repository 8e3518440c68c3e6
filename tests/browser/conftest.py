from __future__ import annotations

import json
import math

import pytest
import torch

from sae.metrics.examples import Example, LatentExamples, write_examples
from sae.metrics.firing import Firing

COLUMNS = ("step", "tokens", "fvu", "l0", "dead_fraction", "loss", "lr", "tokens_per_second")


@pytest.fixture
def run_dir(tmp_path):
    """Return the folder of a finished run with 64 latents, of which 50 have examples."""
    folder = tmp_path / "a run & more"
    folder.mkdir()
    (folder / "config.yaml").write_text("model:\n  name: <b>bold</b>\n")
    rows = [",".join(COLUMNS)]
    for step in range(10, 1010, 10):
        fvu = 0.2 + math.exp(-step / 90)
        rows.append(f"{step},{2048 * step},{fvu},32,{0.3 / step},{fvu},0.001,5500")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    summary = {
        "tokens": 2_048_000,
        "steps": 1000,
        "fvu": 0.201,
        "dead_fraction": 0.0312,
        "d_sae": 64,
        "held_out": {"tokens": 4096, "fvu": 0.2345, "l0": 31.5, "output_cosine": 0.91},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "sae").mkdir()
    (folder / "sae" / "sae.json").write_text(
        json.dumps({"metadata": {"model": "org/model<i>", "hook": "layers.3"}})
    )
    firing = Firing(64)
    firing.tokens = 4096
    firing.counts = torch.arange(64) ** 2
    firing.save(folder / "density.json")
    latents = [
        LatentExamples(i, i**2 / 4096, 4.0, [example(i, j) for j in range(8)] if i < 51 else [])
        for i in range(1, 64)
    ]
    write_examples(latents, folder / "examples.jsonl")
    return folder


def example(latent, number):
    tokens = [f" latent{latent}", "<script>alert(1)</script>", '" onmouseover="x', "\n", " end"]
    return Example(tokens, [0.0, 4.0, 0.4, 2.0, 0.0], document=number, position=3)
