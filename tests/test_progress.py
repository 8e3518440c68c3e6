"""Progress messages: when they appear, where, and when they do not."""

import threading
import time

import pytest

from sae import progress as module
from sae.progress import progress, quiet, track


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(module, "DELAY", 0.05)
    monkeypatch.setattr(module, "EVERY", 0.1)
    monkeypatch.delenv("SAE_QUIET", raising=False)


def test_quick_work_prints_nothing(capsys):
    with progress("loading"):
        pass
    assert capsys.readouterr() == ("", "")


def test_slow_work_prints_lines_on_stderr_that_say_what_and_how_long(capsys):
    with progress("loading model gpt2", total=4) as task:
        task.advance()
        time.sleep(0.25)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "loading model gpt2 ..."
    assert lines[1].startswith("loading model gpt2: 25% after")
    assert lines[-1].startswith("loading model gpt2: done in")


def test_track_yields_every_item_and_counts_them(capsys):
    items = []
    for item in track([1, 2, 3], "measuring"):
        time.sleep(0.1)
        items.append(item)
    assert items == [1, 2, 3]
    assert "measuring: 33%" in capsys.readouterr().err


def test_track_takes_an_iterator_of_unknown_length():
    assert list(track(iter("ab"), "reading")) == ["a", "b"]


@pytest.mark.parametrize("how", ["block", "environment"])
def test_quiet_prints_nothing(capsys, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("SAE_QUIET", "1")
        with progress("loading"):
            time.sleep(0.2)
    else:
        with quiet(), progress("loading"):
            time.sleep(0.2)
    assert capsys.readouterr() == ("", "")


def test_an_error_inside_is_raised_and_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(ValueError), progress("loading"):
        raise ValueError
    assert threading.active_count() == before


def test_a_terminal_shows_nested_work_in_one_display(monkeypatch, capsys):
    monkeypatch.setattr(module, "_is_interactive", lambda: True)
    with progress("outer", total=2) as outer:
        time.sleep(0.15)
        with progress("inner"):
            time.sleep(0.15)
            assert module._shown == 2
        outer.update("renamed", completed=2)
        time.sleep(0.15)
    assert module._display is None
