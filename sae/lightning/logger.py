"""`metrics.csv`: one row a log step, exact across a resume."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sae.files import write_text


class MetricsCSV(Logger):
    """Rows of `<folder>/metrics.csv`, keyed by step.

    Lightning's own CSVLogger deletes the file when a run goes on in the same folder. This one keeps
    the rows up to the step resumed from and drops those after it, which are about to be made again.
    The file is replaced whole at each write, so no reader and no crash ever sees half of it.
    """

    def __init__(self, folder: str | Path, *, resume_step: int | None = None) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.file = self.folder / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        if resume_step is not None and self.file.is_file():
            with self.file.open(newline="") as handle:
                for row in csv.DictReader(handle):
                    if int(row["step"]) <= resume_step:
                        kept = {name: value for name, value in row.items() if value != ""}
                        self._rows[int(row["step"])] = kept

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsCSV:
        return self

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self._rows.setdefault(int(step), {"step": int(step)}).update(values)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` holds the settings."""

    @rank_zero_only
    def save(self) -> None:
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows[step] for step in sorted(self._rows))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.file, text.getvalue())
