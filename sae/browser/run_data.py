"""Everything in a run's folder that its page shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import UserError
from sae.metrics.examples import LatentExamples, read_examples
from sae.metrics.firing import Firing
from sae.runs.run_files import Curves, read_curves, read_json_object


@dataclass(frozen=True)
class RunData:
    """The contents of a run's folder. A file that does not exist leaves its field empty.

    Attributes:
        name: Name of the folder.
        config: Text of config.yaml.
        metadata: Metadata of the saved SAE.
        summary: Contents of summary.json.
        evaluation: Contents of evaluation.json, which `evaluate` writes.
        curves: Columns of metrics.csv.
        firing: How often each latent fires on held-out tokens.
        latents: The latents with the text that activates them.
    """

    name: str
    config: str
    metadata: dict[str, Any]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    curves: Curves
    firing: Firing | None
    latents: list[LatentExamples]

    @classmethod
    def read(cls, folder: str | Path) -> RunData:
        """Read a run's folder.

        Raises:
            UserError: If the folder has none of config.yaml, metrics.csv and summary.json, or if a
                JSON file in it is broken.
        """
        folder = Path(folder).resolve()
        names = ("config.yaml", "metrics.csv", "summary.json", "examples.jsonl", "density.json")
        config, metrics, summary, examples, density = (folder / name for name in names)
        if not any(file.is_file() for file in (config, metrics, summary)):
            raise UserError(
                f"{folder} is not the folder of a run: it has none of {', '.join(names[:3])}"
            )
        evaluation = folder / "evaluation.json"
        sae = folder / "sae" / "sae.json"
        return cls(
            name=folder.name,
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            metadata=read_json_object(sae).get("metadata", {}) if sae.is_file() else {},
            summary=read_json_object(summary) if summary.is_file() else {},
            evaluation=read_json_object(evaluation) if evaluation.is_file() else {},
            curves=read_curves(metrics) if metrics.is_file() else Curves(),
            firing=Firing.load(density) if density.is_file() else None,
            latents=read_examples(examples) if examples.is_file() else [],
        )

    @property
    def held_out(self) -> dict[str, Any]:
        """The held-out metrics, by name."""
        return self.summary.get("held_out") or {}
