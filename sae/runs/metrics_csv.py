"""`metrics.csv`: one row a log step, exact across a resume."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from sae.files import write_text


class MetricsCSV:
    """Rows of `<folder>/metrics.csv`, keyed by step.

    A run that goes on keeps the rows up to the step resumed from and drops those after it, which
    are about to be made again. The file is replaced whole at each write, so no reader and no crash
    ever sees half of it.
    """

    def __init__(self, folder: str | Path, *, resume_step: int | None = None) -> None:
        self.folder = Path(folder)
        self.file = self.folder / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        if resume_step is not None and self.file.is_file():
            with self.file.open(newline="") as handle:
                for row in csv.DictReader(handle):
                    if int(row["step"]) <= resume_step:
                        kept = {name: value for name, value in row.items() if value != ""}
                        self._rows[int(row["step"])] = kept

    def add(self, values: dict[str, float], *, step: int) -> None:
        """Add values to the row of `step`, and write."""
        self._rows.setdefault(step, {"step": step}).update(values)
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows[step] for step in sorted(self._rows))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.file, text.getvalue())
