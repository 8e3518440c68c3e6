"""The declaration of a metric: its name, how it is shown, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sae.metrics.score import Score

Direction = Literal["lower", "higher", "one", "none"]
"""Values that are better: lower ones, higher ones, those close to 1; "none" for descriptions."""

_ARROWS: dict[Direction, str] = {"lower": "↓", "higher": "↑", "one": "→1", "none": ""}
_WORDS: dict[Direction, str] = {
    "lower": "Lower is better.",
    "higher": "Higher is better.",
    "one": "1 is ideal.",
    "none": "",
}
DIRECTIONS = "↓ lower is better, ↑ higher is better, →1 should be 1"
"""Explains the arrows of `Metric.arrow_label`, for captions."""


@dataclass(frozen=True)
class Metric:
    """One number about a run: its key in files and how tables, pages and plots show it.

    Attributes:
        name: key in summary.json, metrics.csv and evaluation.json.
        label: text in tables and on axes; clear without its neighbours, at most 26 characters.
        description: one or two sentences for readers who do not know the metric.
        better: which values are better.
        format: format specification of a value, such as ".4f" or ".1%".
        unit: unit of the value, such as "nats"; "" for ratios.
        heading: heading of a narrow table column; `label` if left out.
        detail: shown indented below the metric declared before it.
        in_table: shown in the table of `evaluate` and on the page. Others are only written.
    """

    name: str
    label: str
    description: str = ""
    better: Direction = "none"
    format: str = ".4f"
    unit: str = ""
    heading: str = ""
    detail: bool = False
    in_table: bool = True

    def text(self, value: float) -> str:
        """Return `value` as tables show it."""
        return format(value, self.format)

    @property
    def short(self) -> str:
        """The heading of a narrow column."""
        return self.heading or self.label

    @property
    def indented_label(self) -> str:
        """The label, with two spaces in front if the metric is a detail of the one above."""
        return f"  {self.label}" if self.detail else self.label

    @property
    def arrow_label(self) -> str:
        """`indented_label` with an arrow for the better direction; see `DIRECTIONS`."""
        return f"{self.indented_label} {_ARROWS[self.better]}".rstrip()

    @property
    def axis_label(self) -> str:
        """The label with its unit, for the axis of a plot."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def title(self) -> str:
        """`axis_label` with a capital first letter, for headings."""
        return _capitalized(self.axis_label)

    @property
    def meaning(self) -> str:
        """The description and which values are better, in sentences."""
        return f"{self.description} {_WORDS[self.better]}".strip()

    def chance(self) -> Metric:
        """Return the declaration of this metric's chance level, `<name>_chance`."""
        return replace(
            self,
            name=f"{self.name}_chance",
            label=f"{self.label}, chance",
            heading="chance",
            description="The same metric of something that was not trained.",
            better="none",
            detail=True,
        )

    def held_out(self) -> Metric:
        """Return the declaration of this metric on held-out activations, `held_out_<name>`."""
        return replace(
            self,
            name=f"held_out_{self.name}",
            label=f"held-out {self.label}",
            heading=f"held-out {self.short}",
            detail=False,
        )


def _capitalized(label: str) -> str:
    """Return `label` with a capital, unless its first word is a symbol such as `c_dec`."""
    is_word = label.split(" ")[0].replace("-", "").isalpha()
    return label[:1].upper() + label[1:] if is_word else label


@dataclass(frozen=True)
class Measurement:
    """A function that computes one or more metrics of an evaluated SAE, and what it needs.

    Attributes:
        compute: called with one keyword argument per name in `needs`; returns a `Score` (with an
            interval and, where it means something, a chance level) or a plain number by metric
            name.
        needs: names of attributes of `sae.evaluation.context.EvaluationContext`. If one of them
            is None for an SAE, the measurement does not apply to it and is skipped.
        metrics: the declarations of the metrics, in the order in which they are shown.
        section: heading of the metrics in tables, one of `sae.metrics.registry.SECTIONS`.
    """

    compute: Callable[..., Mapping[str, Score | float]]
    needs: tuple[str, ...]
    metrics: tuple[Metric, ...]
    section: str
