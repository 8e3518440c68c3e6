"""Plot the results of `benchmarks.step_and_op_speed`: `python -m benchmarks.plot [FILE.csv]`.

Each CSV gets a PNG next to it, with two panels about its training steps: time as a multiple of the
bare product of the same shape, and peak memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

from benchmarks import results_io, speed_tables
from benchmarks.command import run_command
from sae.errors import UserError

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

OURS, OTHERS = "#0b6e99", "#b8b8b8"


def _latest() -> Path:
    folder = results_io.REPO / "benchmarks" / "results"
    files = sorted(folder.glob("speed_*.csv"), key=lambda file: file.stem.rsplit("_", 1)[-1])
    if not files:
        raise UserError(
            f"{folder} holds no speed_*.csv yet; run python -m benchmarks.step_and_op_speed --step"
        )
    return files[-1]


def draw(file: Path) -> Path:
    """Draw the plot of one CSV file; return the path of the PNG."""
    rows = [row for row in speed_tables.read(file) if row.op == "step" and row.mode == "topk"]
    if not rows:
        raise UserError(
            f"{file} has no TopK steps; run python -m benchmarks.step_and_op_speed --step"
        )
    shapes = list(dict.fromkeys(row.shape for row in rows))
    # Importing takes no GPU memory.
    memory = "import_mib" if all(row.import_mib != "" for row in rows) else "peak_mib"
    columns = [
        ("times_product", "time of a TopK step, in bare products torch.mm(x, W_enc)", "{:.2f}"),
        (memory, "its peak memory above import, MiB", "{:.0f}"),
    ]
    height = 0.32 * len(rows) + 0.7 * len(shapes) + 0.8
    figure, panels = plt.subplots(1, 2, figsize=(11, height), layout="constrained")
    for panel, (column, title, form) in zip(panels, columns, strict=True):
        y, ticks, names = 0.0, [], []
        for shape in shapes:
            of_shape = sorted((r for r in rows if r.shape == shape), key=lambda r: r.times_product)
            d_in, d_sae, k, batch = shape
            panel.text(
                0,
                y,
                f"{d_in} to {d_sae:,}, k {k}, batch {batch}",
                fontsize=9,
                weight="bold",
                va="center",
            )
            for row in of_shape:
                y -= 1
                value = getattr(row, column)
                if value == "":
                    continue
                color = OURS if row.provider.startswith("ours") else OTHERS
                panel.barh(y, value, color=color, height=0.75)
                panel.text(value, y, " " + form.format(value), va="center", fontsize=8)
                ticks.append(y)
                names.append(row.provider)
            y -= 1.6
        panel.set_yticks(ticks, names, fontsize=8)
        panel.set_ylim(y + 0.9, 0.9)
        panel.set_title(title, fontsize=10, loc="left", pad=10)
        panel.set_xlim(0, 1.12 * max(float(getattr(r, column) or 0) for r in rows))
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    first = rows[0]
    figure.supxlabel(
        f"{first.device}, {first.threads} threads, {first.dtype}, torch {first.torch}, "
        f"{first.date}, "
        f"commit {' and '.join(dict.fromkeys(row.commit for row in rows))}",
        fontsize=8,
    )
    target = file.with_suffix(".png")
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("csv", nargs="*", type=Path, help="default: the latest results")
    for file in parser.parse_args(argv).csv or [_latest()]:
        if not file.is_file():
            raise UserError(
                f"{file} is not a file; give a CSV that benchmarks.step_and_op_speed wrote"
            )
        sys.stdout.write(f"{draw(file)}\n")


if __name__ == "__main__":
    run_command(main)
