"""Where published dictionary learning fails: many features, d = ceil(2 k ln(F / k)), k 10.

With 2,500 samples it falls to a code MCC of .76 in and .48 out of distribution at F 1000, and of
.43 and .26 at F 5000. Here samples are streamed, each seen once; their number is a figure. The
dictionary is then held, and two encoders are trained to it. Settings were chosen on the world of
seed 7, with its truth; what is reported is of the world of seed 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.science.target import Measurement, Target
from benchmarks.science.unknown_dictionary import compositional_world
from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, L1, LossTerm
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import Sparsity, TopK, Unrolled
from sae.inference.active_set import active_set_codes
from sae.inference.result import ragged_codes, sparse_rows
from sae.metrics.code_matching import code_mcc_absolute
from sae.metrics.decoder_directions import dictionary_mcc_chance, dictionary_mcc_signed
from sae.training import OptimConfig, SparseCoding, SparseCodingLearner
from sae.worlds import World
from sae_kernels.codes import Codes

BATCH = 1024
# F 1000, dictionary MCC: .853 with 20 iterations of FISTA after 150 batches, as codes are far from
# converged; .970 where twins are told at a cosine of .6 in place of .9 (feature 0, active in half
# the samples, had been split among 40 atoms); .995 with 60 iterations. 4 rounds do as well.
CODING = SparseCoding(
    first_penalty=2.5, penalty=0.3, rounds=4, same=0.6, replace_every=10, bias=False
)
# Of the active set, for the codes that are judged.
FINAL_ROUNDS = 12


@dataclass(frozen=True)
class Encoder:
    """A rule for F and d, the objective it is trained by, and where b_enc starts. LISTA begins well
    where only what stands out fires at first, and then larger steps than 2 / |D|^2 do no harm: a
    code MCC of .88 before training at F 1000, and of .58 with b_enc near 0. (Steps of .3 diverge at
    F 5000.)"""

    rule: Callable[[int, int], Sparsity]
    terms: list[LossTerm]
    b_enc: float = 0.0


ENCODERS = {
    "TopK": Encoder(lambda F, d: TopK(d_sae=F, k=10), [FVU()]),
    "LISTA, 4 layers": Encoder(
        lambda F, d: Unrolled(
            d_sae=F, layers=4, tied=False, step=5 / (1 + math.sqrt(F / d)) ** 2, theta=0.0
        ),
        [FVU(), L1(coefficient=0.02)],
        b_enc=-2.0,
    ),
}


def learner(world: World, encoder: Encoder, steps: tuple[int, int]) -> SparseCodingLearner:
    coding, training = steps
    F = world.n_features
    made = SparseCodingLearner(
        SAE(world.d_in, encoder.rule(F, world.d_in), site=Autoencoder().bind(world.widths)),
        encoder.terms,
        OptimConfig(lr=3e-3),
        settings=replace(CODING, share=coding / (coding + training)),
        total_steps=coding + training,
        dead_after=10**9,
    )
    made.initialise(world.block("train", 0, BATCH, 0).acts)
    with torch.no_grad():
        made.sae.b_enc.fill_(encoder.b_enc)
    return made


def judged(world: World, encode: Callable[[Tensor], Codes]) -> tuple[float, float]:
    """Code MCC of `encode`, in and out of distribution: |Pearson|, Hungarian, active features."""
    scores = []
    for one in (world, world.out_of_distribution()):
        (y,) = one.block("held_out", 0, 2500, 0).acts.values()
        scores.append(code_mcc_absolute(one.codes("held_out", 0, 2500, 0), encode(y)))
    return scores[0], scores[1]


def by_lasso(W: Tensor, penalty: float) -> Callable[[Tensor], Codes]:
    def encode(y: Tensor) -> Codes:
        return ragged_codes([sparse_rows(active_set_codes(y, W, penalty, FINAL_ROUNDS))], len(W))

    return encode


def many(
    n_features: int, steps: tuple[int, int], published: tuple[str, str]
) -> Iterator[Measurement]:
    """`steps`: batches for the dictionary, and for each encoder."""
    world = compositional_world(n_features, 0)
    dictionary = None
    for name, encoder in ENCODERS.items():
        one = learner(world, encoder, steps)
        clock = time.process_time()
        if dictionary is None:
            for index in range(steps[0]):
                one.step(world.block("train", index, BATCH, 0).acts)
            dictionary = one.coder.state_dict()
            W = one.sae.W_dec.detach()
            mcc = dictionary_mcc_signed(W, world.truth)
            yield Measurement("samples for the dictionary", (float(steps[0] * BATCH),))
            yield Measurement("CPU seconds for the dictionary", (time.process_time() - clock,))
            yield Measurement("dictionary MCC", (mcc,))
            yield Measurement(
                "dictionary MCC, chance", (dictionary_mcc_chance(world.truth, len(W)),)
            )
            places = ("", ", out of distribution")
            (scale,) = one.scale.values()
            penalty = one.coder.penalty / scale  # the last one, in the unit of the samples
            learnt = judged(world, by_lasso(W, penalty))
            for place, bar, score in zip(places, published, learnt, strict=True):
                yield Measurement(f"code MCC{place}", (score,), bar, low=float(bar))
            for place, score in zip(
                places, judged(world, by_lasso(world.truth, penalty)), strict=True
            ):
                yield Measurement(f"code MCC{place}, true dictionary", (score,))
        else:
            one.coder.load_state_dict(dictionary)
            one.steps = one.start_step
            one.hold()
        for index in range(steps[0], sum(steps)):
            one.step(world.block("train", index, BATCH, 0).acts)
        sae = one.export()
        kept = dictionary_mcc_signed(sae.W_dec, world.truth) / mcc
        yield Measurement(
            f"share of the dictionary MCC that the SAE keeps, {name}", (kept,), low=0.95
        )
        for place, score in zip(places, judged(world, sae.encode), strict=True):
            yield Measurement(f"code MCC{place}, encoder trained to it, {name}", (score,))


TARGETS = [
    Target(
        "open-1000",
        "Barin Pacela et al. 2603.28744, F 1000",
        lambda: many(1000, (200, 300), (".76", ".48")),
    ),
    Target(
        "open-5000",
        "Barin Pacela et al. 2603.28744, F 5000",
        lambda: many(5000, (260, 60), (".43", ".26")),
    ),
]
