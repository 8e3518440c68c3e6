"""Ctrl-C before training: one line and exit code 130, whatever the program was doing."""

from __future__ import annotations

import signal

import pytest

from sae.cli.main import main
from sae.worlds import SparseSuperposition
from tiny import WORLD_SOURCE, as_flags

FLAGS = as_flags(
    {
        **WORLD_SOURCE,
        "model.sae.d_sae": 16,
        "model.sae.k": 2,
        "trainer.max_steps": 4,
        "trainer.accelerator": "cpu",
        "data.batch_size": 16,
        "data.block_batches": 2,
    }
)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["setup", "block"])
def test_ctrl_c_while_activations_are_prepared(moment, monkeypatch, tmp_path, capsys):
    """`setup` is where a model loads; `block` runs inside Lightning, before the first step."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(SparseSuperposition, moment, interrupt)
        assert main(["fit", *FLAGS]) == 130
    error = capsys.readouterr().err
    assert error == "stopped by the user\n"
    assert signal.getsignal(signal.SIGINT) is handler, "a later Ctrl-C must still work"
    assert main(["fit", *FLAGS]) == 0, "the interrupted run stands in the way of its retry"


def test_ctrl_c_while_libraries_load(monkeypatch, capsys):
    monkeypatch.setattr("sae.cli.main.import_module", interrupt)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "stopped by the user\n"
