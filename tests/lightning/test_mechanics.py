"""Training settings from the command line: dtype, EMA, accumulation, resampling, optimizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sae import SAE, UserError
from sae.cli.fit import fit
from tiny import assert_same_tensors, read_metrics, run_settings, write_settings

STEPS = 24
SETTINGS = run_settings(
    {
        "name": "r",
        "model.dead_after": 400,
        "model.refresh_steps": 4,
        "model.optim": {"lr": 3e-3, "warmup": 0.0},
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 12,
        "checkpoint_every": 9,
    }
)
FLAGS = {
    "accumulation": ["--model.accumulate=3", "--trainer.steps_per_call=2", "--checkpoint_every=8"],
    "bfloat16": ["--model.dtype", "bfloat16"],
    "ema": ["--model.ema", "0.9"],
    "resampling": ["--model.resample_every=6", "--model.dead_after=65", "--model.optim.lr=0.03"],
    "signum": ["--model.optim.name", "signum"],
    "muon": ["--model.optim.name", "muon", "--model.optim.lr_factors", "{b_dec: 2.0}"],
}


def train(folder: Path, flags: list[str]) -> Path:
    fit(["--config", str(write_settings(folder, SETTINGS)), "--runs", str(folder), *flags])
    return folder / "r"


@pytest.mark.parametrize("setting", FLAGS)
def test_setting_trains_resumes_to_the_same_bits_and_is_exported(tmp_path, setting):
    run = train(tmp_path / "one", FLAGS[setting])
    resumed = tmp_path / "two" / "r"
    shutil.copytree(run, resumed)
    (resumed / "checkpoints" / f"step={STEPS}.ckpt").unlink()
    assert len(list((resumed / "checkpoints").iterdir())) == 1  # the one to resume from
    (resumed / "summary.json").unlink()
    if setting == "accumulation":
        with pytest.raises(UserError, match="accumulate=2 differs from 3"):
            fit(["--resume", str(resumed), "--model.accumulate=2"])
    fit(["--resume", str(resumed)])
    table = read_metrics(run)
    assert table == read_metrics(resumed)
    for folder in ("sae", "sae_ema") if setting == "ema" else ("sae",):
        sae = SAE.load(run / folder)
        assert_same_tensors(sae, SAE.load(resumed / folder))
    assert sae.W_dec.dtype == (torch.bfloat16 if setting == "bfloat16" else torch.float32)

    column = lambda name: [float(row[name]) for row in table]
    assert column("fvu")[-1] < 0.95 * column("fvu")[0]
    summary = json.loads((run / "summary.json").read_text())
    assert ("held_out_ema" in summary) == (run / "sae_ema").is_dir() == (setting == "ema")
    assert ("resampled" in summary) == ("revived" in table[0]) == (setting == "resampling")
    assert summary["steps"] == STEPS == int(table[-1]["step"])
    assert summary["tokens"] == STEPS * 64 * (3 if setting == "accumulation" else 1)
    checkpoint = torch.load(run / "checkpoints" / f"step={STEPS}.ckpt", weights_only=True)
    (stream,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert stream["position"] == summary["tokens"] // 64, "each batch is handed out once"
    last_fvu = float(table[-1]["held_out_fvu"])
    assert last_fvu == pytest.approx(
        summary["held_out"]["fvu"], rel=1e-5 if setting != "bfloat16" else 0.02
    )
    if setting == "resampling":
        assert summary["resampled"] == column("resampled")[-1] > 0
        assert summary["revived"] == column("revived")[-1] > 0
    if setting == "ema":
        assert summary["held_out_ema"]["fvu"] != summary["held_out"]["fvu"]
