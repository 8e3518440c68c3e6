"""Follow docs/how-to/add-a-rule.md literally, from a folder outside the package."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs/how-to/add-a-rule.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
RULE, TRAINING = [text for language, text in BLOCKS if language == "python"]
(COMMAND,) = [text for language, text in BLOCKS if language == "bash"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mymodule.py").write_text(RULE)
    return tmp_path


def run(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Run `code` in a new process, so that the rule is not registered in this one."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_python_trains_with_the_rule_and_loads_it(folder: Path) -> None:
    seeded = TRAINING.replace("features =", "torch.manual_seed(0)\nfeatures =")
    check = """
x = batches[0]["x"]
y_hat = again(x)
assert torch.equal(y_hat, learner.export()(x))
codes = again.encode(x)
pre = (x.double() - again.b_dec.double()) @ again.W_enc.double() + again.b_enc.double()
dense = torch.where(pre > again.theta.double(), pre, 0)
torch.testing.assert_close(codes.to_dense().double(), dense, rtol=1e-4, atol=1e-4)
factor = 0.5 / again.theta[0].item()
torch.testing.assert_close(torch.tensor(factor), torch.tensor(learner.scale["x"]))
print(again.sparsity.to_dict(), (y_hat - x).square().sum().item() / x.var(0).sum().item() / 256)
"""
    lines = run(folder, seeded + check).stdout.splitlines()
    assert 0 < ast.literal_eval(lines[0])["fvu"] < 1
    rule, _, fvu = lines[1].rpartition(" ")
    assert ast.literal_eval(rule) == {"class": "Threshold", "d_sae": 128, "theta": 0.5}
    assert float(fvu) < 0.5


def test_the_command_line_trains_and_resumes_with_the_rule(folder: Path) -> None:
    words = shlex.split(COMMAND.replace("\\\n", " "))
    assert words[:2] == ["python", "train.py"]
    words = [str(REPO / w) if w.startswith("configs/") else w for w in words[2:]]
    short = ["--trainer.max_steps", "30", "--trainer.log_every_n_steps", "10"]
    short += ["--checkpoint_every", "15", "--data.batch_size", "128"]
    short += ["--data.held_out_tokens", "256", "--trainer.accelerator", "cpu"]
    wrong = [word if word != "0.3" else "-1" for word in words]
    code = f"""
import pathlib
from sae.cli.main import main
assert main({words + short}) == 0
last = pathlib.Path("runs/threshold/checkpoints/step=30.ckpt")
last.rename("first.ckpt")
assert main(["fit", "--resume", "runs/threshold"]) == 0
assert main({[*wrong, "--name", "wrong"]}) == 2
"""
    error = run(folder, code).stderr.strip().splitlines()[-1]
    assert error.startswith("error: model.sae.theta=-1.0 must not be negative")
    summary = json.loads((folder / "runs/threshold/summary.json").read_text())
    assert summary["architecture"] == "Autoencoder+Threshold" and summary["steps"] == 30
    sae = json.loads((folder / "runs/threshold/sae/sae.json").read_text())
    assert sae["sparsity"] == {"class": "Threshold", "d_sae": 256, "theta": 0.3}
    before, resumed = (
        torch.load(folder / file, weights_only=True)["state_dict"]
        for file in ("first.ckpt", "runs/threshold/checkpoints/step=30.ckpt")
    )
    for name in ("members.0.learner.sae.W_enc", "members.0.learner.sae.theta"):
        assert torch.equal(before[name], resumed[name]), name
