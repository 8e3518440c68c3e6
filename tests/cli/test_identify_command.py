"""The command `identify`: its table, its JSON file and its errors."""

from __future__ import annotations

import json

import pytest

from sae.cli.main import main
from tiny import run_settings, write_settings

WORLD = {
    "class_path": "sae.worlds.NonlinearMixing",
    "init_args": {
        "d_in": 3,
        "latents": {"class_path": "SphereLatents", "init_args": {"n_features": 3, "kappa": 6.0}},
        "classes": 3,
        "widths": [8],
        "steps": 20,
        "batch_size": 32,
    },
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = {"model.sae.d_sae": 4, "model.sae.k": 1, "trainer.max_steps": 1}
    return write_settings(tmp_path, run_settings({**changes, "data.source": WORLD}))


def test_identify_prints_a_table_and_writes_json(config, tmp_path, capsys):
    out = tmp_path / "identify.json"
    line = ["identify", "--config", str(config), "--samples=400", "--json", str(out)]
    assert main([*line, "--data.source.classes", "4"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["samples"] == 400 and result["source"]["classes"] == 4
    for name in ("z_to_y", "y_to_z_untrained", "x_to_z", "cross_seed", "orthogonality_error"):
        assert f"{result[name]:.3f}" in printed, name
    assert main(line) == 0
    assert "WARNING: 3 classes cannot tell 3 latents apart" in capsys.readouterr().out
    assert json.loads(out.read_text())["source"]["classes"] == 3


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "identify needs --config FILE"),
        (["--config", "CONFIG", "--samples", "many"], "--samples many"),
        (["--config", "CONFIG", "--samples", "6"], "6 and 6 samples of 3 dimensions"),
        (["--config", "CONFIG", "--json", "/no/where/x.json"], "there is no folder /no/where"),
        (["--config", "CONFIG", "--data.source", "World"], "data.source=World has no network"),
        (["--config", "CONFIG", "--data.source.steps", "0"], "steps=0"),
    ],
)
def test_identify_refuses_bad_input_with_one_line(config, capsys, flags, named):
    assert main(["identify", *(str(config) if f == "CONFIG" else f for f in flags)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0]


def test_help_lists_the_flags_of_identify(capsys):
    with pytest.raises(SystemExit) as done:
        main(["identify", "--help"])
    assert done.value.code == 0 and "--samples" in capsys.readouterr().out
