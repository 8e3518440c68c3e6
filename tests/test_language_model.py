"""A real, if small, language model on real text: does the SAE keep what the model predicts with?"""

from __future__ import annotations

import json

import pytest

from sae.lightning.cli import main


@pytest.mark.slow
def test_stories260k(shared_dir, tmp_path, monkeypatch, repo):
    """TopK, 1,024 latents, k 16, on layer 3 of a 260k-parameter Llama trained on TinyStories."""
    monkeypatch.chdir(tmp_path)
    code = main(
        ["fit", "--config", str(repo / "configs/local.yaml"), "--name", "stories"]
        + ["--data.source.model", str(shared_dir / "models/stories260k")]
        + ["--data.source.text.paths", f"[{shared_dir}/text/tinystories-sampled.txt]"]
    )
    assert code == 0
    summary = json.loads((tmp_path / "runs/stories/summary.json").read_text())
    held_out = summary["held_out"]
    assert summary["tokens"] >= 1_000_000 and summary["d_in"] == 64
    assert 1.2 < held_out["ce_clean"] < 1.8, "the model predicts stories at about 1.5 nats"
    assert held_out["ce_clean"] < held_out["ce_sae"] < held_out["ce_clean"] + 0.5
    assert held_out["ce_zero_ablation"] > held_out["ce_sae"] + 2
    assert held_out["fvu"] < 0.2 and summary["dead_fraction"] < 0.1
