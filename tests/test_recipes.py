"""Every recipe trains, on a model of the same depth whose text and weights are on disk."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("transformers")

import transformers  # noqa: E402

from sae import SAE  # noqa: E402
from sae.cli.fit import fit  # noqa: E402
from tiny_models import some_documents, tiny_tokenizer  # noqa: E402

RECIPES = sorted((Path(__file__).resolve().parent.parent / "configs/recipes").glob("*.yaml"))
PUBLISHED = {
    "anthropic-2023", "anthropic-april-2024", "openai-topk", "gemma-scope-jumprelu", "batchtopk",
    "matryoshka", "transcoder", "skip-transcoder", "crosscoder", "clt",
}  # fmt: skip
WIDTH, STEPS = 16, 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model with twelve layers, as GPT-2 small and Pythia-160M have, and text."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=WIDTH, n_layer=12, n_head=2, n_inner=32, n_positions=64,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tiny_tokenizer("gpt2").save_pretrained(folder)
    (folder / "text.txt").write_text("<|endoftext|>".join(some_documents(200)))
    return {"model": folder, "text": folder / "text.txt"}


def shrunk(recipe: Path, data: dict[str, Path]) -> dict:
    """The recipe with another source, smaller and faster: what it chooses stays as it is."""
    settings = yaml.safe_load(recipe.read_text())
    model, source = settings["model"], settings["data"]["source"]["init_args"]
    model["sae"]["init_args"]["d_sae"] = 384
    model["dead_after"] = 64
    model["refresh_steps"] = 5
    if "lr" in model["optim"]:  # such a short run must go faster to get anywhere
        model["optim"]["lr"] *= 20
    if "resample_every" in model:
        model["resample_every"] = 8
    source |= {"model": str(data["model"]), "context_size": 32, "model_batch_size": 16}
    files = {"paths": [str(data["text"])]}
    source["text"] = {"class_path": "FileText", "init_args": files}
    settings["data"] |= {"batch_size": 32, "block_batches": 8, "held_out_tokens": 128}
    settings["trainer"] |= {"max_steps": STEPS, "log_every_n_steps": 1, "val_check_interval": 10}
    settings["trainer"]["accelerator"] = "cpu"
    settings["checkpoint_every"] = STEPS
    return settings


def test_the_published_ones_are_here_and_say_what_they_follow():
    assert {recipe.stem for recipe in RECIPES} >= PUBLISHED
    for recipe in RECIPES:
        text = recipe.read_text()
        assert "# Follows: " in text and re.search("# Differences?: ", text), recipe
        assert yaml.safe_load(text)["name"] == recipe.stem


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_recipe_trains(tmp_path: Path, data: dict[str, Path], recipe: Path) -> None:
    settings = shrunk(recipe, data)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    assert fit(["--config", str(tmp_path / "r.yaml"), "--runs", str(tmp_path)]) == 0
    run = tmp_path / recipe.stem
    sae, chosen = SAE.load(run / "sae"), settings["model"]
    site = chosen.get("site", {}).get("class_path", "Autoencoder")
    assert type(sae.site).__name__ == site
    assert type(sae.sparsity).__name__ == chosen["sae"]["class_path"]
    asked = chosen["sae"]["init_args"].items()
    assert asked <= sae.sparsity.to_dict().items()
    ran = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert [t["class_path"].rpartition(".")[2] for t in ran["losses"]] == [
        term["class_path"] for term in chosen["losses"]
    ]
    assert chosen["optim"].items() <= ran["optim"].items()
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["fvu"]]
    assert len(rows) == STEPS and int(rows[-1]["step"]) == STEPS
    fvu = [float(row["fvu"]) for row in rows]
    assert sum(fvu[-4:]) < 0.97 * sum(fvu[:4])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["tokens"] == STEPS * 32 * chosen.get("accumulate", 1)
    assert summary["held_out"]["fvu"] > 0 and (run / "report.html").is_file()
    assert ("resampled" in summary) == ("resample_every" in chosen)
    assert (run / "sae_ema").is_dir() == ("ema" in chosen)
    if len(sae.site.hooks) == 1:  # folding keeps norms
        held = torch.allclose(sae.decoder_norms(), torch.ones(384), atol=1e-5)
        assert held == chosen["optim"]["unit_norm"]
