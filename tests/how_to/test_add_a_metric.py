"""Follow docs/how-to/add-a-metric.md literally, from a folder outside the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-metric.md"
CONFIG = """
name: mine
model: {sae: {class_path: TopK, init_args: {d_sae: 32, k: 2}}}
data:
  source:
    class_path: SparseSuperposition
    init_args: {d_in: 16, n_features: 32, mean_active: 2.0}
  batch_size: 128
  block_batches: 2
  held_out_tokens: 512
trainer: {max_steps: 5, val_check_interval: 5, accelerator: cpu}
checkpoint_every: 5
"""


def test_page_adds_a_metric_from_outside_the_package(tmp_path):
    module, *steps = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "gini.py").write_text(module)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    train = "from sae.cli.main import main\nassert main(['fit', '--config', 'mine.yaml']) == 0\n"
    check = (
        "from gini import gini\nimport torch\n"
        "assert gini(torch.ones(4)) == 0 and gini(torch.tensor([0, 0, 0, 8])) == 0.75\n"
        "assert 0 < metrics['firing_gini'] < 1\n"
        "assert metrics['above_average_fraction_chance'] == 0.5\n"
    )
    (tmp_path / "steps.py").write_text(train + "\n".join(steps) + check)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "steps.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "Gini of firing counts" in line)
    assert "↓" in row
    run = tmp_path / "runs" / "mine"
    written = json.loads((run / "evaluation.json").read_text())
    assert {"firing_gini", "above_average_fraction", "above_average_fraction_high"} <= set(written)
    page = (run / "report.html").read_text()
    assert "Gini of firing counts" in page and "How unevenly latents fire" in page
