"""Where published dictionary learning fails: many features, d = ceil(2 k ln(F / k)), k 10.

With 2,500 samples it falls to a code MCC of .76 in and .48 out of distribution at F 1000. Here
samples are streamed, each seen once; their number is a figure. The dictionary is then held, and two
encoders are trained to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor

from benchmarks.science.target import Figure, Target
from benchmarks.science.unknown_dictionary import compositional_world
from sae.autoencoder import SAE
from sae.autoencoder.objective import FVU, L1, Term
from sae.autoencoder.sites import Autoencode
from sae.autoencoder.sparsity import Sparsity, TopK, Unrolled
from sae.inference import fista
from sae.metrics.code_matching import code_mcc_absolute
from sae.metrics.dictionary import dictionary_mcc_chance, dictionary_mcc_signed
from sae.training import OptimConfig, SparseCoding, SparseCodingLearner
from sae.worlds import World
from sae_kernels.codes import Codes

BATCH = 1024
# Codes are FISTA's at this penalty, in the unit of the samples, |y| being about 1.8.
PENALTY = 0.01
ENCODERS = {
    "TopK": (lambda F: TopK(d_sae=F, k=10), [FVU()]),
    "LISTA, 3 layers": (
        lambda F: Unrolled(d_sae=F, layers=3, step=0.1, theta=0.0),
        [FVU(), L1(target_l0=12.0)],
    ),
}


def learner(world: World, rule: Sparsity, terms: list[Term], steps: tuple[int, int]):
    coding, training = steps
    settings = SparseCoding(
        penalty=0.5, share=coding / (coding + training), iterations=20, bias=False
    )
    site = Autoencode().bind(world.widths)
    made = SparseCodingLearner(
        SAE(world.d_in, rule, site=site),
        terms,
        OptimConfig(lr=1e-3),
        settings=settings,
        total_steps=coding + training,
        dead_after=10**9,
    )
    made.initialise(world.block("train", 0, BATCH, 0).acts)
    return made


def judged(world: World, encode) -> tuple[float, float]:
    """Code MCC of `encode`, in and out of distribution: |Pearson|, Hungarian, active features."""
    scores = []
    for one in (world, world.out_of_distribution()):
        (y,) = one.block("held_out", 0, 2500, 0).acts.values()
        scores.append(code_mcc_absolute(one.codes("held_out", 0, 2500, 0), encode(y)))
    return scores[0], scores[1]


def by_fista(W: Tensor):
    def encode(y: Tensor) -> Codes:
        return fista(y, W, PENALTY, iterations=500, tolerance=1e-2).codes

    return encode


def many(n_features: int, steps: tuple[int, int], published: tuple[str, str]) -> Iterator[Figure]:
    """`steps`: batches for the dictionary, and for each encoder."""
    world = compositional_world(n_features, 0)
    dictionary = None
    for name, (rule, terms) in ENCODERS.items():
        one = learner(world, rule(n_features), terms, steps)
        clock = time.process_time()
        if dictionary is None:
            for index in range(steps[0]):
                one.step(world.block("train", index, BATCH, 0).acts)
            dictionary = one.coder.state_dict()
            W = one.sae.W_dec.detach()
            mcc = dictionary_mcc_signed(W, world.truth)
            yield Figure("samples for the dictionary", (float(steps[0] * BATCH),))
            yield Figure("CPU seconds for the dictionary", (time.process_time() - clock,))
            yield Figure("dictionary MCC", (mcc,))
            yield Figure("dictionary MCC, chance", (dictionary_mcc_chance(world.truth, len(W)),))
            places = ("", ", out of distribution")
            learnt = judged(world, by_fista(W))
            for place, bar, score in zip(places, published, learnt, strict=True):
                yield Figure(f"code MCC{place}", (score,), bar, low=float(bar))
            for place, score in zip(places, judged(world, by_fista(world.truth)), strict=True):
                yield Figure(f"code MCC{place}, true dictionary", (score,))
        else:
            one.coder.load_state_dict(dictionary)
            one.steps = one.begins
            one.hold()
        for index in range(steps[0], sum(steps)):
            one.step(world.block("train", index, BATCH, 0).acts)
        sae = one.export()
        kept = dictionary_mcc_signed(sae.W_dec, world.truth) / mcc
        yield Figure(f"share of the dictionary MCC that the SAE keeps, {name}", (kept,), low=0.95)
        for place, score in zip(places, judged(world, sae.encode), strict=True):
            yield Figure(f"code MCC{place}, encoder trained to it, {name}", (score,))


TARGETS = [
    Target(
        "open-1000",
        "Barin Pacela et al. 2603.28744, F 1000",
        lambda: many(1000, (150, 600), (".76", ".48")),
    ),
]
