"""Follow docs/how-to/add-a-metric.md literally, from a folder outside the package."""

from __future__ import annotations

import json

import pytest

from how_to_pages import code_blocks, read_page, run_python
from tiny import run_settings, write_settings

pytestmark = pytest.mark.slow  # it trains from the command line, as the page says

SETTINGS = run_settings(
    {
        "name": "mine",
        "model.sae.d_sae": 32,
        "model.sae.k": 2,
        "data.source.n_features": 32,
        "data.source.mean_active": 2.0,
        "data.batch_size": 128,
        "data.block_batches": 2,
        "data.held_out_tokens": 512,
        "trainer.max_steps": 5,
        "trainer.log_every_n_steps": 10,
        "trainer.val_check_interval": 5,
        "checkpoint_every": 5,
    }
)


def test_page_adds_a_metric_from_outside_the_package(tmp_path):
    module, *steps = code_blocks(read_page("add-a-metric"), "python")
    (tmp_path / "gini.py").write_text(module)
    write_settings(tmp_path, SETTINGS, "mine.yaml")
    train = "from sae.cli.main import main\nassert main(['fit', '--config', 'mine.yaml']) == 0\n"
    check = (
        "from gini import gini\nimport torch\n"
        "assert gini(torch.ones(4)) == 0 and gini(torch.tensor([0, 0, 0, 8])) == 0.75\n"
        "assert 0 < metrics['firing_gini'] < 1\n"
        "assert metrics['above_average_fraction_chance'] == 0.5\n"
    )
    (tmp_path / "steps.py").write_text(train + "\n".join(steps) + check)
    done = run_python("steps.py", cwd=tmp_path)
    (row,) = (line for line in done.stdout.splitlines() if "Gini of firing counts" in line)
    assert "↓" in row
    run = tmp_path / "runs" / "mine"
    written = json.loads((run / "evaluation.json").read_text())
    assert {"firing_gini", "above_average_fraction", "above_average_fraction_high"} <= set(written)
    page = (run / "report.html").read_text()
    assert "Gini of firing counts" in page and "How unevenly latents fire" in page
