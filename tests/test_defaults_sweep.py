"""`benchmarks.defaults`: it changes the named setting only, and summarizes its runs."""

from __future__ import annotations

from dataclasses import fields

import pytest

from benchmarks import defaults as sweep
from benchmarks import results_io
from sae.autoencoder.losses import AuxK
from sae.errors import UserError
from sae.training import defaults


def test_a_run_changes_only_its_knob(tmp_path, monkeypatch):
    cell = sweep.Cell("power-law", "small", 24)
    runs = [(cell, "lr", (1.0,)), (cell, "lr", (2.0,)), (cell, "auxk", (1 / 8, 1 / 2))]
    runs += [(cell, "dead", (0.25,))]
    monkeypatch.setattr(sweep, "grid", lambda: runs)
    sweep.main(["--out", str(tmp_path)])
    (file,) = tmp_path.glob("defaults_cpu_*.csv")
    rule, twice, auxk, dead = results_io.read_rows(file, sweep.Row)
    assert rule.lr == pytest.approx(defaults.ROW_ROTATION / (32 * 24) ** 0.5)
    assert twice.lr == pytest.approx(2 * rule.lr) and twice.fvu != rule.fvu
    assert (rule.d_sae, rule.k, rule.coefficient) == (128, 5, 0.5)
    assert rule.k_aux == AuxK().effective_k_aux(32) == 4
    assert (auxk.coefficient, auxk.k_aux, auxk.lr) == (1 / 8, 16, pytest.approx(rule.lr))
    assert rule.dead_after == defaults.dead_after(128, 5, tokens=24 * 1024)
    assert dead.dead_after == rule.dead_after // 4 and dead.lr == pytest.approx(rule.lr)
    sweep.main(["--knob", "lr", "--out", str(tmp_path)])  # replaces the rows, with the same bits
    assert [row.fvu for row in results_io.read_rows(file, sweep.Row)[:2]] == [rule.fvu, twice.fvu]
    assert file.with_suffix(".png").stat().st_size > 10_000
    text = file.with_suffix(".md").read_text()
    assert "| power-law | small | 24 | 1024 | x 2 |" in text and "| 1/8, d_in/2 |" in text
    with pytest.raises(UserError, match="--max-steps 5"):
        sweep.main(["--max-steps", "5", "--out", str(tmp_path)])


def test_losses_are_relative_to_the_lowest_of_the_cell():
    def row(size: str, value: str, fvu: float) -> sweep.Row:
        values = {field.name: 0 for field in fields(sweep.Row)}
        changed = {"size": size, "value": value, "fvu": fvu, "mcc": float("nan")}
        return sweep.Row(**{**values, **changed})

    rows = [row("a", "x 1", 0.2), row("a", "x 2", 0.1), row("b", "x 1", 0.3), row("b", "x 2", 0.33)]
    losses = sweep.losses(rows)
    assert losses == {"x 1": [pytest.approx(1.0), 0.0], "x 2": [0.0, pytest.approx(0.1)]}
    assert "| x 1 | 2 | 50.0% | 100.0% |" in sweep.summary(rows)[2]


def test_every_knob_is_varied_on_three_sizes_of_three_kinds_of_data():
    for knob in ("lr", "auxk"):
        varied = {(cell.data, cell.size) for cell, name, _ in sweep.grid() if name == knob}
        assert varied == {(d, s) for d in ("equal", "power-law", "minilm") for s in sweep.SIZES}
