"""Follow docs/how-to/add-a-rule.md literally, from a folder outside the package."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch

from how_to_pages import SHORT, code_blocks, read_page, run_python, train_arguments

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

PAGE = read_page("add-a-rule")
RULE, TRAINING = code_blocks(PAGE, "python")
(COMMAND,) = code_blocks(PAGE, "bash")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mymodule.py").write_text(RULE)
    return tmp_path


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
    lines = run_python("-c", seeded + check, cwd=folder).stdout.splitlines()
    assert 0 < ast.literal_eval(lines[0])["fvu"] < 1
    rule, _, fvu = lines[1].rpartition(" ")
    assert ast.literal_eval(rule) == {"class": "Threshold", "d_sae": 128, "theta": 0.5}
    assert float(fvu) < 0.5


def test_the_command_line_trains_and_resumes_with_the_rule(folder: Path) -> None:
    words = train_arguments(COMMAND)
    wrong = [word if word != "0.3" else "-1" for word in words]
    code = f"""
import pathlib
from sae.cli.main import main
assert main({words + SHORT}) == 0
last = pathlib.Path("runs/threshold/checkpoints/step=30.ckpt")
last.rename("first.ckpt")
assert main(["fit", "--resume", "runs/threshold"]) == 0
assert main({[*wrong, "--name", "wrong"]}) == 2
"""
    error = run_python("-c", code, cwd=folder).stderr.strip().splitlines()[-1]
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
