"""Measure how often 95% intervals cover the truth: `python -m benchmarks.coverage`.

Documents are drawn with unequal lengths and with errors that differ between documents, and a metric
is the ratio of two sums over them. The true value is the ratio over 4,000,000 documents. Each
method computes an interval from each of 4,000 draws of a few documents; the share of intervals that
hold the true value should be .95. Takes about a minute. Writes `coverage_cpu_<date>.md`.

With `--run RUN`, the folder of a finished run on text, documents are also drawn from the run's own
training text, and the true value is that of all its documents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtr, ndtri, stdtrit

from benchmarks import results_io
from sae.errors import UserError
from sae.files import write_text
from sae.metrics.interval import COSINE, POSITIVE, SHARE, Bounds, ratio_interval
from sae.metrics.score import sums_by_cluster

UNITS = (6, 12, 25, 60, 250)
REPLICATIONS, RESAMPLES = 4000, 1000
Array = np.ndarray
Ends = tuple[Array, Array]


@dataclass(frozen=True)
class Case:
    """A metric that is a ratio of sums over documents.

    Attributes:
        title: name of the metric and of the data.
        draw: function of a shape and a generator; returns both sums of each document.
        bounds: possible values of the metric.
    """

    title: str
    draw: Callable[[tuple[int, ...], np.random.Generator], Ends]
    bounds: Bounds

    def truth(self, documents: int = 4_000_000) -> float:
        """Return the ratio over very many documents."""
        rng, sums = np.random.default_rng(99), np.zeros(2)
        for _ in range(documents // 250_000):
            sums += [column.sum() for column in self.draw((250_000,), rng)]
        return float(sums[0] / sums[1])


def lengths(shape: tuple[int, ...], rng: np.random.Generator, spread: float = 1.0) -> Array:
    """Return document lengths in tokens: log-normal with median 148, at most 50,000."""
    return np.exp(5 + spread * rng.standard_normal(shape)).round().clip(1, 50_000)


def token_sums(length: Array, mean: Array, shape: float, rng: np.random.Generator) -> Array:
    """Return the sum over each document's tokens of gamma variates with the document's mean."""
    return rng.gamma(length * shape) * mean / shape


def draw_fvu(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    spread: float = 1.0,
    spread_of_fvu: float = 0.35,
    slope: float = 0.0,
) -> Ends:
    """Return squared errors and variations.

    Args:
        shape: shape of the result.
        rng: source of random numbers.
        spread: standard deviation of the logarithm of the lengths.
        spread_of_fvu: standard deviation of the logarithm of a document's FVU.
        slope: change of log FVU per unit of log length.
    """
    length = lengths(shape, rng, spread)
    variance = np.exp(0.25 * rng.standard_normal(shape))
    log_fvu = spread_of_fvu * rng.standard_normal(shape) + slope * (np.log(length) - 5)
    error = token_sums(length, 0.1 * np.exp(log_fvu) * variance, 2, rng)
    return error, token_sums(length, variance, 8, rng)


def draw_l0(shape: tuple[int, ...], rng: np.random.Generator) -> Ends:
    """Return numbers of active latents and of tokens."""
    length = lengths(shape, rng)
    return token_sums(length, 32 * np.exp(0.4 * rng.standard_normal(shape)), 2, rng), length


def draw_cosine(shape: tuple[int, ...], rng: np.random.Generator) -> Ends:
    """Return sums of cosines, about .94 on average, and numbers of tokens."""
    length = lengths(shape, rng)
    missing = token_sums(length, 0.05 * np.exp(0.5 * rng.standard_normal(shape)), 2, rng)
    return length - missing, length


def draw_share(shape: tuple[int, ...], rng: np.random.Generator) -> Ends:
    """Return the number of tokens with a property, 1% of all, and of tokens."""
    length = lengths(shape, rng)
    share = rng.beta(0.5, 49.5, shape)
    return rng.binomial(length.astype(int), share).astype(float), length


CASES = (
    Case("FVU, documents of uneven length", draw_fvu, POSITIVE),
    Case(
        "FVU, lengths more uneven, lower in long documents",
        lambda shape, rng: draw_fvu(shape, rng, spread=1.2, slope=-0.2),
        POSITIVE,
    ),
    Case("FVU, equal lengths", lambda shape, rng: draw_fvu(shape, rng, spread=0.0), POSITIVE),
    Case("L0", draw_l0, POSITIVE),
    Case("cosine", draw_cosine, COSINE),
    Case("share of 1% of tokens", draw_share, SHARE),
)


def cases_of_run(run: Path, tokens: int = 327_680, block: int = 8192) -> list[Case]:
    """Return FVU and cosine of a finished run over the documents of its training text.

    Args:
        run: folder of the run.
        tokens: number of activations to read.
        block: number of them to encode at once.

    Raises:
        UserError: the activations do not come from documents.
    """
    from sae import SAE
    from sae.cli.config import parse_config

    source = parse_config(["--config", str(run / "config.yaml")]).run.data.source
    source.setup("cpu")
    sae = SAE.load(run / "sae")
    site, parts = sae.site.bind(source.widths), []
    for index in range(tokens // block):
        batch = source.block("train", index, block, 0)
        if batch.provenance is None or batch.provenance.cluster != "document":
            raise UserError(f"--run {run}: its activations have no documents; give a run on text")
        x, y = site.pair({hook: batch.acts[hook] for hook in site.hooks})
        with torch.no_grad():
            y_hat = sae(x)
        cosine = torch.cosine_similarity(y, y_hat, dim=1)
        parts.append((batch.provenance["document"], y, (y - y_hat).square().sum(1), cosine))
    document, y, error, cosine = (torch.cat(column) for column in zip(*parts, strict=True))
    variation = (y - y.mean(0)).square().sum(1)
    columns = {"error": error, "variation": variation, "cosine": cosine}
    sums = sums_by_cluster(columns | {"rows": torch.ones(len(y))}, document)
    arrays = {name: column.numpy() for name, column in sums.items()}

    def draw(above: str, below: str) -> Callable[[tuple[int, ...], np.random.Generator], Ends]:
        def documents(shape: tuple[int, ...], rng: np.random.Generator) -> Ends:
            drawn = rng.integers(len(arrays["rows"]), size=shape)
            return arrays[above][drawn], arrays[below][drawn]

        return documents

    name = f"{len(arrays['rows'])} documents of the run {run.name}"
    return [
        Case(f"FVU, {name}", draw("error", "variation"), POSITIVE),
        Case(f"cosine, {name}", draw("cosine", "rows"), COSINE),
    ]


def resample(above: Array, below: Array, resamples: int) -> tuple[Array, Array]:
    """Return resampled ratios and their standard errors [replications, resamples].

    All replications share the resamples, which makes the bootstrap a matrix product.
    """
    n = above.shape[1]
    counts = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), resamples).T.astype(float)
    total = below @ counts
    ratio = above @ counts / total
    square = (above**2) @ counts - 2 * ratio * ((above * below) @ counts)
    square += ratio**2 * (below**2 @ counts)
    return ratio, np.sqrt(square.clip(0) * n / (n - 1)) / total


def bootstrap_intervals(above: Array, below: Array, resamples: int) -> dict[str, Ends]:
    """Return the intervals of three bootstraps: percentile, BCa, and of log ratio / its error."""
    resampled, errors = resample(above, below, resamples)
    replications, n = above.shape
    value = (above.sum(1) / below.sum(1))[:, None]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    # BCa: Efron, Journal of the American Statistical Association 82, 1987.
    jackknife = (above.sum(1, keepdims=True) - above) / (below.sum(1, keepdims=True) - below)
    influence = jackknife.mean(1, keepdims=True) - jackknife
    acceleration = (influence**3).sum(1) / (6 * (influence**2).sum(1) ** 1.5)
    shift = ndtri((resampled < value).mean(1).clip(1e-3, 1 - 1e-3))
    ordered, bca = np.sort(resampled, axis=1), []
    for quantile in (ndtri(0.025), ndtri(0.975)):
        z = shift + (shift + quantile) / (1 - acceleration * (shift + quantile))
        place = (ndtr(z) * resamples).astype(int).clip(0, resamples - 1)
        bca.append(ordered[np.arange(replications), place])
    # Studentised: Hall, Annals of Statistics 16, 1988.
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.log(resampled / value) / (errors / resampled)
    statistic = np.nan_to_num(statistic, nan=0, posinf=1e3, neginf=-1e3)
    t_low, t_high = np.quantile(statistic, [0.025, 0.975], axis=1)
    residual = above - value * below
    error = np.sqrt((residual**2).sum(1) * n / (n - 1)) / below.sum(1) / value[:, 0]
    with np.errstate(over="ignore"):
        studentised = value[:, 0] * np.exp([-t_high * error, -t_low * error])
    t = stdtrit(n - 1, 0.975) * error
    return {
        "percentile bootstrap (before)": (low, high),
        "BCa bootstrap": (bca[0], bca[1]),
        "studentised bootstrap of the log": (studentised[0], studentised[1]),
        "log, t with n - 1": (value[:, 0] * np.exp(-t), value[:, 0] * np.exp(t)),
    }


OURS, SPREAD = "**this project**", "spread of the metric"


def coverage(
    case: Case,
    truth: float,
    units: int,
    replications: int = REPLICATIONS,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float, float]]:
    """Return the share of intervals that hold the truth, their median and mean width, by method.

    Widths are in multiples of the true value or, for a cosine, of 1 minus it. `SPREAD` has the
    width from the 2.5th to the 97.5th percentile of the metric itself, in all replications.
    """
    above, below = case.draw((replications, units), np.random.default_rng(units))
    known = above.sum(1) > 0  # without any event the bootstraps have no ratio to resample
    intervals = bootstrap_intervals(above[known], below[known], resamples)
    ends = {name: tuple(_filled(end, known) for end in pair) for name, pair in intervals.items()}
    ours = ratio_interval(above, below, case.bounds)
    ends[OURS] = ours.low, ours.high
    scale = 1 - truth if case.bounds == COSINE else truth
    results = {}
    for name, (low, high) in ends.items():
        width = (high - low) / scale
        covered = ((low <= truth) & (truth <= high)).mean()
        results[name] = float(covered), float(np.median(width)), float(width.mean())
    spread = float(np.diff(np.quantile(ours.value, [0.025, 0.975]))[0] / scale)
    return results | {SPREAD: (0.95, spread, spread)}


def _filled(end: Array, known: Array) -> Array:
    """Return ends for all replications; those without an event have the interval [0, 0]."""
    ends = np.zeros(len(known))
    ends[known] = end
    return ends


def dead_latents(
    replications: int = REPLICATIONS, resamples: int = RESAMPLES
) -> list[tuple[int, float, float, float, float]]:
    """Return d_sae, the true share, and coverage before and now and the share of [0, 0] before."""
    rows = []
    for d_sae in (64, 512, 8192):
        for share in (0.0005, 0.005, 0.05):
            rng = np.random.default_rng(d_sae)
            dead = rng.binomial(d_sae, share, replications)
            # The percentile bootstrap of a share is a quantile of binomials with the found share.
            resampled = rng.binomial(d_sae, dead[:, None] / d_sae, (replications, resamples))
            low, high = np.quantile(resampled / d_sae, [0.025, 0.975], axis=1)
            before = ((low <= share) & (share <= high)).mean()
            counts, index = np.unique(dead, return_inverse=True)
            latents = (np.arange(d_sae) < counts[:, None]).astype(float)
            ours = ratio_interval(latents, np.ones_like(latents), SHARE)
            now = ((ours.low <= share) & (share <= ours.high))[index].mean()
            rows.append((d_sae, share, float(before), float(now), float((dead == 0).mean())))
    return rows


@dataclass(frozen=True)
class Run:
    """The machine and the command of the simulation, for `results_io.provenance_lines`."""

    date: str
    device: str
    threads: int
    versions: str
    commit: str
    command: str


def report(run: Run, cases: Sequence[Case]) -> list[str]:
    """Return the lines of the page: a table for each case, and one for dead latents."""
    lines = [
        f"Simulated on {run.date}: {REPLICATIONS:,} draws of each number. A cell is the",
        "share of 95% intervals that hold the true value, and in brackets their median and mean",
        "width in multiples of the true value (for the cosine, of 1 minus it). The standard error",
        "of a share near .95 is .003. The last row has the width from the 2.5th to the 97.5th",
        "percentile of the metric itself over all draws.",
    ]
    for case in cases:
        truth = case.truth()
        columns = [coverage(case, truth, units) for units in UNITS]
        lines += ["", f"**{case.title}** (true value {truth:.4g})", ""]
        lines += ["| documents | " + " | ".join(map(str, UNITS)) + " |"]
        lines += ["|---|" + "--:|" * len(UNITS)]
        for method in columns[0]:
            cells = (_cell(method, column[method]) for column in columns)
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", "**Share of dead latents**, each latent one unit", ""]
    lines += ["| d_sae | true share | coverage before | coverage now | interval was [0, 0] |"]
    lines += ["|--:|--:|--:|--:|--:|"]
    for d_sae, share, before, now, empty in dead_latents():
        lines.append(f"| {d_sae:,} | {share:.2%} | {before:.3f} | {now:.3f} | {empty:.0%} |")
    return [*lines, *results_io.provenance_lines([run])]


def _cell(method: str, result: tuple[float, float, float]) -> str:
    covered, median, mean = result
    if method == SPREAD:
        return f"({median:.2f})"
    return f"{covered:.3f} ({median:.2f}, {f'{mean:.2f}' if mean < 100 else f'{mean:.0e}'})"


def main(argv: list[str] | None = None) -> int:
    """Run the simulation and write the page; return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.coverage", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=results_io.REPO / "benchmarks" / "results")
    parser.add_argument("--run", type=Path, help="finished run whose documents to draw from too")
    arguments = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(arguments)
    run = Run(
        date=results_io.today(),
        device=results_io.cpu_name(),
        threads=1,
        versions=results_io.versions(["numpy", "scipy", "sae-workbench"]),
        commit=results_io.commit(),
        command=results_io.command_line("benchmarks.coverage", arguments),
    )
    lines = report(run, [*CASES, *(cases_of_run(args.run) if args.run else ())])
    write_text(args.out / f"coverage_cpu_{run.date}.md", "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
