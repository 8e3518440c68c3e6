"""Training settings from the command line: dtype, EMA, accumulation, resampling, optimizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from sae import SAE, UserError
from sae.cli.fit import fit

STEPS = 24
SETTINGS = {
    "name": "r",
    "model": {
        "sae": {"class_path": "TopK", "init_args": {"d_sae": 64, "k": 4}},
        "dead_after": 400,
        "refresh_steps": 4,
        "optim": {"lr": 3e-3, "warmup": 0.0},
    },
    "data": {
        "source": {
            "class_path": "SparseSuperposition",
            "init_args": {"d_in": 16, "n_features": 64, "mean_active": 3.0},
        },
        "batch_size": 64,
        "block_batches": 4,
        "held_out_tokens": 256,
    },
    "trainer": {
        "max_steps": STEPS,
        "log_every_n_steps": 4,
        "val_check_interval": 12,
        "accelerator": "cpu",
    },
    "checkpoint_every": 9,
}
FLAGS = {
    "accumulation": ["--model.accumulate=3", "--trainer.steps_per_call=2", "--checkpoint_every=8"],
    "bfloat16": ["--model.dtype", "bfloat16"],
    "ema": ["--model.ema", "0.9"],
    "resampling": ["--model.resample_every=6", "--model.dead_after=65", "--model.optim.lr=0.03"],
    "signum": ["--model.optim.name", "signum"],
    "muon": ["--model.optim.name", "muon", "--model.optim.lr_factors", "{b_dec: 2.0}"],
}


def train(folder: Path, flags: list[str]) -> Path:
    folder.mkdir()
    (folder / "c.yaml").write_text(yaml.safe_dump(SETTINGS))
    fit(["--config", str(folder / "c.yaml"), "--runs", str(folder), *flags])
    return folder / "r"


def rows(run: Path) -> list[list[str]]:
    """Return the rows of metrics.csv, header first, without the columns that depend on time."""
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    time_columns = [lines[0].index(name) for name in ("seconds", "tokens_per_second")]
    return [[cell for i, cell in enumerate(line) if i not in time_columns] for line in lines]


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
    assert rows(run) == rows(resumed)
    for folder in ("sae", "sae_ema") if setting == "ema" else ("sae",):
        sae, other = (SAE.load(path / folder) for path in (run, resumed))
        for (name, a), b in zip(sae.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    assert sae.W_dec.dtype == (torch.bfloat16 if setting == "bfloat16" else torch.float32)

    table = rows(run)
    column = lambda name: [float(line[table[0].index(name)]) for line in table[1:]]
    assert column("fvu")[-1] < 0.95 * column("fvu")[0]
    summary = json.loads((run / "summary.json").read_text())
    assert ("held_out_ema" in summary) == (run / "sae_ema").is_dir() == (setting == "ema")
    assert ("resampled" in summary) == ("revived" in table[0]) == (setting == "resampling")
    assert summary["steps"] == STEPS == int(table[-1][0])
    assert summary["tokens"] == STEPS * 64 * (3 if setting == "accumulation" else 1)
    checkpoint = torch.load(run / "checkpoints" / f"step={STEPS}.ckpt", weights_only=True)
    (stream,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert stream["position"] == summary["tokens"] // 64, "each batch is handed out once"
    last_fvu = float(table[-1][table[0].index("held_out_fvu")])
    assert last_fvu == pytest.approx(
        summary["held_out"]["fvu"], rel=1e-5 if setting != "bfloat16" else 0.02
    )
    if setting == "resampling":
        assert summary["resampled"] == column("resampled")[-1] > 0
        assert summary["revived"] == column("revived")[-1] > 0
    if setting == "ema":
        assert summary["held_out_ema"]["fvu"] != summary["held_out"]["fvu"]
