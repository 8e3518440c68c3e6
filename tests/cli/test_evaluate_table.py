from __future__ import annotations

import io

from rich.console import Console

from sae.cli.evaluate_table import SHOWN, WIDTH, table

HEADINGS = (
    "decoder\nfrozen",
    "Gaussian\nnoise",
    "untrained\nmodel",
    "half\nthe L0",
    "twice\nthe L0",
)


def printed(figures, beside):
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(table("r", {"tokens": 16384} | figures, beside, "a friend"))
    return console.file.getvalue()


def everything(value):
    keys = [key for _, rows in SHOWN for _, key, _ in rows]
    return {key + end: value for key in keys for end in ("", "_low", "_high", "_chance")}


def test_all_of_it_fits_a_terminal_beside_five_controls():
    figures = everything(0.51234)
    said = printed(figures, {h: (h, figures) for h in HEADINGS})
    assert "\u2026" not in said  # nothing is cut
    lines = said.splitlines()
    for heading, rows in SHOWN:
        assert any(line.strip() == heading for line in lines)
        for label, _, form in rows:
            value = format(0.51234, form)
            (line,) = (line for line in lines if line.startswith(f"{label} "))
            assert line.split(label)[1].split() == [value] * 9, line
    assert "judged by a friend" in said


def test_what_is_not_known_is_left_out():
    beside = {"c": ("noise", {"fvu": 0.75, "l0": 3.0})}
    said = printed({"fvu": 0.25, "fvu_low": 0.125, "fvu_high": 0.5, "c_dec": 0.1}, beside)
    rows = [line.rstrip() for line in said.splitlines()]
    (fvu,) = (row for row in rows if row.startswith("FVU"))
    assert fvu.split("copy)")[1].split() == ["0.2500", "0.1250", "0.5000", "0.7500"]
    (l0,) = (row for row in rows if row.startswith("L0"))
    assert l0.split("token")[1].split() == ["3.00"] and len(l0) == len(fvu)
    assert "Reconstruction" in rows and "Latents" in rows
    for absent in ("MCC", "Against the truth", "Capacity", "judged", "None"):
        assert absent not in said
