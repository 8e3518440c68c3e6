"""`benchmarks.offset`: the world with an offset, and the files that it writes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import offset, results_io
from sae.errors import UserError
from sae.worlds import SparseSuperposition

SETTINGS = {"d_in": 8, "n_features": 16, "mean_active": 2.0}


def test_world_is_shifted_by_the_offset_in_standard_deviations():
    plain = SparseSuperposition(**SETTINGS).block("train", 3, 20_000, 1).acts["world"]
    shifted = offset.OffsetWorld(5.0, **SETTINGS).block("train", 3, 20_000, 1).acts["world"]
    difference = shifted - plain
    torch.testing.assert_close(difference, difference[:1].expand_as(plain), rtol=0, atol=1e-5)
    deviation = (plain - plain.mean(0)).square().sum(1).mean().sqrt()
    assert difference[0].norm().item() == pytest.approx(5 * deviation.item(), rel=0.02)


def test_run_writes_a_row_for_each_offset(tmp_path):
    command = ["--recipe", "TopK", "--offset", "0,20", "--steps", "8"]
    offset.main([*command, "--out", str(tmp_path)])
    (file,) = tmp_path.glob("offset_cpu_*.csv")
    rows = results_io.read_rows(file, offset.Row)
    assert [(row.steps, row.offset) for row in rows] == [(8, 0.0), (8, 20.0)]
    assert rows[1].fvu == pytest.approx(rows[0].fvu, rel=1e-3)
    assert "| TopK | 8 | 20 | 0 |" in file.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("args", "message"), [(["--recipe", "TopQ"], "TopQ"), (["--offset", "0,far"], "0,far")]
)
def test_errors_name_the_wrong_argument(args, message):
    with pytest.raises(UserError, match=message):
        offset.main(args)
