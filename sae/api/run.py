"""Results of a training run, as Python objects."""

from __future__ import annotations

import csv
import webbrowser
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from sae.argument_types import checked_arguments
from sae.autoencoder import SAE
from sae.errors import UserError
from sae.runs.run_dir import RunDir
from sae.runs.run_files import read_json_object


class Run:
    """A finished training run of one SAE.

    Args:
        folder: Folder of the run, such as `runs/default`.

    Attributes:
        folder: The folder. It holds `sae/`, `config.yaml`, `metrics.csv`, `summary.json`,
            `report.html` and checkpoints.
        name: Name of the run.

    Raises:
        UserError: the folder holds no finished run.
    """

    @checked_arguments()
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        if not RunDir(self.folder).summary.is_file():
            raise UserError(f"{self.folder} holds no finished run; give the folder of one")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the finished run, as in `summary.json`.

        `metrics["held_out"]` holds those on held-out activations, `metrics["fvu"]` and others
        without that are of the last training steps.
        """
        return read_json_object(RunDir(self.folder).summary)

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """The rows of `metrics.csv`: metrics during training, each row with its `step`."""
        with (self.folder / "metrics.csv").open(encoding="utf-8", newline="") as handle:
            return [
                {name: float(cell) for name, cell in row.items() if cell}
                for row in csv.DictReader(handle)
            ]

    @cached_property
    def sae(self) -> SAE:
        """The trained SAE, on the CPU.

        Raises:
            UserError: training was stopped early, for example because it diverged.
        """
        if "stopped" in self.metrics:
            raise UserError(
                f"{self.name} has no SAE: {self.metrics['stopped']} at step {self.metrics['steps']}"
            )
        return SAE.load(self.folder / "sae")

    def browse(self, *, open_browser: bool = True) -> Path:
        """Open the page about the run, `report.html`, in a web browser.

        Args:
            open_browser: False to only return the path of the page.

        Returns:
            The path of the page.
        """
        page = (self.folder / "report.html").resolve()
        if not page.is_file():
            raise UserError(f"{self.folder} has no report.html")
        if open_browser:
            webbrowser.open(page.as_uri())
        return page

    def __repr__(self) -> str:
        m = self.metrics
        if "stopped" in m:
            return f"<Run {str(self.folder)!r}: {m['stopped']} at step {m['steps']:,}>"
        held_out = m["held_out"]
        return (
            f"<Run {str(self.folder)!r}: {m['architecture']}, {m['steps']:,} steps, "
            f"{m['tokens']:,} tokens; held out FVU {held_out['fvu']:.4f}, L0 {held_out['l0']:.1f}, "
            f"dead latents {m['dead_fraction']:.1%}>"
        )


class Runs(Sequence[Run]):
    """Finished runs of several SAEs that were trained on the same activations, in their order.

    Args:
        folder: Folder of the whole run.
        names: Names of its members; each is a folder in it.

    Attributes:
        folder: Folder of the whole run.
    """

    def __init__(self, folder: str | Path, names: Sequence[str]) -> None:
        self.folder = Path(folder)
        self._runs = {name: Run(self.folder / name) for name in names}

    @property
    def names(self) -> list[str]:
        """Names of the members."""
        return list(self._runs)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics of all members, as in `summary.json` of the whole run."""
        return read_json_object(RunDir(self.folder).summary)

    @overload
    def __getitem__(self, key: int | str) -> Run: ...

    @overload
    def __getitem__(self, key: slice) -> list[Run]: ...

    def __getitem__(self, key: int | str | slice) -> Run | list[Run]:
        return self._runs[key] if isinstance(key, str) else list(self._runs.values())[key]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def __repr__(self) -> str:
        return "\n".join([f"<Runs {str(self.folder)!r}:", *(f"  {run!r}" for run in self)]) + ">"
