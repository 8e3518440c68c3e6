"""`metrics.csv`: one row per logged step, appended, and exact across a resume."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sae.files import write_text


class MetricsCSV:
    """The file `<folder>/metrics.csv`, to which rows are added during a run.

    A row is appended when its step is logged. Values that come later for the same step (held-out
    metrics after the training metrics) are written into that last row. Only a column that was not
    there before makes the whole file be written again, which happens a few times per run: columns
    are in the order in which they first had a value.

    A resumed run keeps the rows up to the step it resumes from and drops the later ones, which it
    writes again, so the file ends up with the same bytes as that of an uninterrupted run. A last
    line that a crash left incomplete is dropped too.

    Args:
        folder: The folder of the run; made with the first row.
        resume_step: The step of the checkpoint that the run resumes from; None for a new run, which
            replaces a file that is already there.
    """

    def __init__(self, folder: str | Path, *, resume_step: int | None = None) -> None:
        self.folder = Path(folder)
        self.file = self.folder / "metrics.csv"
        self._columns: list[str] = ["step"]
        self._last: dict[str, Any] = {}
        self._last_offset = 0  # bytes before the last row
        self._started = False
        if resume_step is not None and self.file.is_file():
            rows = [row for row in read_rows(self.file) if int(row["step"]) <= resume_step]
            self._columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
            self._last = rows[-1] if rows else {}
            self._rewrite(rows)

    def add(self, values: dict[str, float], *, step: int) -> None:
        """Add `values` to the row of `step`, which must be the last row's step or a later one."""
        same_step = bool(self._last) and int(self._last["step"]) == step
        row = {**self._last, **values} if same_step else {"step": step, **values}
        new_columns = [name for name in row if name not in self._columns]
        if not self._started or not self.file.is_file():
            self._columns += new_columns
            self._rewrite([row])
        elif new_columns:
            rows = read_rows(self.file)
            self._columns += new_columns
            self._rewrite([*(rows[:-1] if same_step else rows), row])
        else:
            with self.file.open("r+b") as handle:
                if not same_step:
                    self._last_offset = handle.seek(0, os.SEEK_END)
                handle.seek(self._last_offset)
                # In one call, so that a reader or a kill finds the old row or the new one.
                handle.write(self._lines([row]))
                handle.truncate()
        self._last = row

    def _rewrite(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the header and `rows` to the file, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = self._lines([dict(zip(self._columns, self._columns, strict=True)), *rows[:-1]])
        self._last_offset = len(text)
        write_text(self.file, (text + self._lines(rows[-1:])).decode())
        self._started = True

    def _lines(self, rows: Iterable[dict[str, Any]]) -> bytes:
        """Return rows as lines of CSV; a column that a row lacks is an empty cell."""
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def read_rows(file: str | Path) -> list[dict[str, str]]:
    """Return the complete rows of a metrics file, each as column -> text without empty cells.

    A line that a crash left incomplete (no line end, or another number of cells) is left out. A
    file that does not exist has no rows.
    """
    if not Path(file).is_file():
        return []
    lines = Path(file).read_text(encoding="utf-8").splitlines(keepends=True)
    header, *rows = list(csv.reader(line for line in lines if line.endswith("\n"))) or [[]]
    complete = [row for row in rows if len(row) == len(header) and row[0].isdigit()]
    return [
        {name: cell for name, cell in zip(header, row, strict=True) if cell != ""}
        for row in complete
    ]
