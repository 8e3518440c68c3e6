from __future__ import annotations

import sys

from sae.evaluation.baselines import _progress


class Terminal:
    """What is written to a terminal."""

    def __init__(self):
        self.said = ""

    def write(self, text):
        self.said += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_off_a_terminal_every_tenth_is_a_line(capsys):
    assert list(_progress(iter(range(25)), 25, "half the L0")) == list(range(25))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "controls: half the L0: 12%" and lines[-1] == "controls: half the L0: 100%"


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert list(_progress(iter("abc"), 3, "noise")) == ["a", "b", "c"]
    assert "controls: noise" in terminal.said and "100%" in terminal.said
