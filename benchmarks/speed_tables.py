"""Keep the results of `benchmarks.step_and_op_speed` as CSV, JSON and a Markdown page."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sae.files import write_text


@dataclass(frozen=True)
class Row:
    """One measurement. A column that does not apply holds an empty string.

    Attributes:
        op: The op that was timed; `step` for a whole training step.
        provider: The implementation: ours, reference, compiled, or another trainer.
        mode: forward, backward (both passes), or for a step its sparsity rule.
        ms_p50: Median wall time in ms (on a GPU between two events), with ms_p20 and ms_p80.
        product_ms: Time of `torch.mm` of the encoder's shape, timed in turn with the op.
        times_product: ms_p50 / product_ms.
        times_best: ms_p50 over the time of the fastest product of that shape in this build.
        roofline: Least time / ms_p50; the least time follows from this machine's product and copy
            rates.
        gbps: The least memory traffic of the op, in GB per second.
        tflops: The least arithmetic of the op, in TFLOP per second.
        peak_mib: Peak memory above that after a tiny step of the same provider; for a single op on
            a GPU, above its inputs. It is not measured for ops on CPU, where freed memory stays
            with the process.
        import_mib: Peak memory above that after importing the provider; steps on CPU only.
        max_err: Largest difference from `reference` in float64, relative to its largest value.
        command: Command that repeats this measurement.
    """

    op: str
    provider: str
    mode: str
    dtype: str
    batch: int
    d_in: int
    d_sae: int
    k: int
    ms_p50: float
    ms_p20: float
    ms_p80: float
    product_ms: float
    times_product: float
    times_best: float
    roofline: float | str
    gbps: float | str
    tflops: float | str
    peak_mib: float | str
    import_mib: float | str
    max_err: float | str
    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    date: str
    command: str

    @property
    def key(self) -> tuple:
        """Identifies a measurement; a later one with the same key replaces it."""
        return (
            self.op,
            self.provider,
            self.mode,
            self.dtype,
            *self.shape,
            self.device,
            self.threads,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(d_in, d_sae, k, batch)."""
        return self.d_in, self.d_sae, self.k, self.batch


def read(file: Path) -> list[Row]:
    """Return the rows of a CSV file, or an empty list if there is no such file."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as handle:
        return [
            Row(**{f.name: _typed(f.type, row[f.name]) for f in fields(Row)})
            for row in csv.DictReader(handle)
        ]


def _typed(kind: str, text: str) -> object:
    if kind == "str" or text == "":
        return text
    return int(text) if kind == "int" else float(text)


def write(folder: Path, name: str, rows: list[Row]) -> Path:
    """Add rows to `<name>.csv`, rewrite `<name>.md` and `<name>.json`; return the CSV's path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.csv"
    latest = {row.key: row for row in [*read(file), *rows]}  # a replaced row keeps its place
    rows = sorted(latest.values(), key=lambda row: row.shape)
    lines = [",".join(f.name for f in fields(Row))]
    lines += [",".join(_cell(value) for value in asdict(row).values()) for row in rows]
    write_text(file, "\n".join(lines) + "\n")
    write_text(file.with_suffix(".json"), json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    write_text(file.with_suffix(".md"), "\n".join(page(rows)) + "\n")
    return file


def _cell(value: object) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text


def page(rows: list[Row]) -> list[str]:
    """Return a Markdown page: a table for each shape, then how it was measured."""
    lines = ["# Speed", ""]
    lines += [
        "Medians (20th to 80th percentile). `x product`: multiple of the time of a bare `torch.mm`",
        "of the encoder's shape, timed in turn with the call in the same process; `x best`:",
        "multiple of the time of the fastest such product in this build of torch.",
        "`benchmarks/speed_tables.py` explains the columns.",
    ]
    for shape in dict.fromkeys((row.device, row.threads, *row.shape) for row in rows):
        device, threads, d_in, d_sae, k, batch = shape
        of_shape = [r for r in rows if (r.device, r.threads, *r.shape) == shape]
        lines += ["", f"## d_in {d_in}, d_sae {d_sae}, k {k}, batch {batch}", ""]
        lines += [f"{device}, {threads} threads", "", *table(of_shape)]
    lines += ["", "## How this was measured", ""]
    for title, values in (
        ("Versions", (f"torch {row.torch}, triton {row.triton}" for row in rows)),
        ("Commit and date", (f"{row.commit}, {row.date}" for row in rows)),
        ("Command", (f"`{row.command}`" for row in rows)),
    ):
        lines += [f"- {title}: {value}" for value in dict.fromkeys(values)]
    return lines


HEAD = (
    "op",
    "provider",
    "mode",
    "dtype",
    "ms",
    "x product",
    "x best",
    "roofline",
    "peak MiB",
    "above import",
    "max err",
)


def table(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|---|---|" + "--:|" * (len(HEAD) - 4)]
    for row in rows:
        cells = (
            row.op,
            row.provider,
            row.mode,
            row.dtype,
            f"{row.ms_p50:.4g} ({row.ms_p20:.4g}-{row.ms_p80:.4g})",
            f"{row.times_product:.2f}",
            f"{row.times_best:.2f}",
            _number(row.roofline, ".0%"),
            _number(row.peak_mib, ".0f"),
            _number(row.import_mib, ".0f"),
            _number(row.max_err, ".1e"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: float | str, form: str) -> str:
    return "" if value == "" else format(value, form)
