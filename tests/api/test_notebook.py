"""Progress in a notebook: plain HTML that is updated in place, without widgets or warnings."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

import pytest
import torch

import sae


class ZMQInteractiveShell:
    """Stands for the shell of a Jupyter kernel, which is recognized by its name."""


class Display:
    """A stand-in for the handle of `IPython.display.display`; it records what is shown."""

    def __init__(self, html: str) -> None:
        self.shown = [html]

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def displays(monkeypatch) -> list[Display]:
    shown: list[Display] = []

    def display(html: str, display_id: bool) -> Display:
        shown.append(Display(html))
        return shown[-1]

    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython, ipython.version_info = ZMQInteractiveShell, (9, 0)
    module.HTML, module.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def test_a_notebook_shows_a_bar_that_reaches_the_last_step(displays, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae.train(
            activations=torch.randn(500, 8),
            sae=sae.TopK(d_sae=16, k=2),
            steps=12,
            batch_size=32,
            block_batches=4,
            runs=tmp_path,
            accelerator="cpu",
        )
    (display,) = displays
    assert "step 0 of 12" in display.shown[0] and "<progress value='0' max='12'" in display.shown[0]
    assert "step 12 of 12" in display.shown[-1] and "FVU" in display.shown[-1]
    assert capsys.readouterr() == ("", "")
