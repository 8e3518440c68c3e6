"""Does the margin d / delta say which part of an autoencoder fails, its dictionary or its encoder?

It was said to, after four settings: near 1 the dictionary, above about 2 the encoder alone. Here
are ten worlds of equally frequent features with half-normal values, exactly k active at a time,
chosen so that margins from 1.3 to 3.1 do not go with features per dimension. TopK with as many
latents as features, by the settings' own rules, 1,536,000 samples. Of each the 2 x 2 of {learned,
true} dictionary x {own, best} codes.
"""

from __future__ import annotations

from collections.abc import Iterator

from scipy.stats import spearmanr

from benchmarks.science.target import Measurement, Target
from sae import SAE
from sae.activations import Stream
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.metrics.amortisation import InferenceOrDictionary, inference_or_dictionary
from sae.metrics.capacity import capacity
from sae.metrics.decoder_directions import dictionary_mcc_signed
from sae.training import Learner, OptimConfig, defaults
from sae.worlds import SparseSuperposition

# Features, dimensions, active.
WORLDS = (
    (16, 8, 3),
    (128, 16, 3),
    (64, 16, 4),
    (32, 12, 3),
    (128, 24, 4),
    (32, 16, 3),
    (128, 32, 4),
    (64, 24, 3),
    (64, 48, 6),
    (128, 48, 4),
)
STEPS, BATCH, HELD_OUT = 1500, 1024, 1024
SEEDS = range(2)
HOLDS = 0.8


def trained(world: SparseSuperposition, k: int, seed: int) -> SAE:
    site = Autoencoder().bind(world.widths)
    sae = SAE(world.d_in, TopK(d_sae=world.n_features, k=k), site=site, seed=seed)
    dead_after = defaults.dead_after(world.n_features, k, STEPS * BATCH)
    learner = Learner(sae, [FVU(), AuxK()], OptimConfig(), total_steps=STEPS, dead_after=dead_after)
    stream = Stream(world, batch_size=BATCH, block_batches=50, seed=seed)
    learner.initialise(stream.first_block().acts)
    for _, batch in zip(range(STEPS), stream, strict=False):
        learner.step(batch.acts)
    return learner.export()


def judged(shape: tuple[int, int, int], seed: int) -> tuple[float, InferenceOrDictionary]:
    """Dictionary MCC, and the 2 x 2."""
    features, d, k = shape
    world = SparseSuperposition(d, features, k, active="exact", dictionary_seed=seed)
    sae = trained(world, k, seed)
    (x,) = world.block("held_out", 0, HELD_OUT, 0).acts.values()
    z = world.codes("held_out", 0, HELD_OUT, 0)
    mcc = dictionary_mcc_signed(sae.W_dec, world.truth)
    return mcc, inference_or_dictionary(sae, x, z, world.truth)


def encoders(split: InferenceOrDictionary) -> float:
    """Of the code MCC that better codes and the true dictionary win, what better codes do."""
    return split.inference_share / (split.inference_share + split.dictionary_share)


def run() -> Iterator[Measurement]:
    margins = [capacity(d, features, k).margin for features, d, k in WORLDS]
    crowds = [features / d for features, d, _ in WORLDS]
    mccs: dict[int, list[float]] = {seed: [] for seed in SEEDS}
    shares: dict[int, list[float]] = {seed: [] for seed in SEEDS}
    owns: dict[int, list[float]] = {seed: [] for seed in SEEDS}
    for (features, d, k), margin in zip(WORLDS, margins, strict=True):
        for seed in SEEDS:
            mcc, split = judged((features, d, k), seed)
            mccs[seed].append(mcc)
            shares[seed].append(encoders(split))
            owns[seed].append(split.code_mcc_own)
        said = f"{features} features, d {d}, k {k}, margin {margin:.2f}: "
        last = lambda found: tuple(values[-1] for values in found.values())
        yield Measurement(said + "dictionary MCC", last(mccs))
        yield Measurement(said + "share of the loss that is the encoder's", last(shares))

    def order(by: list[float], found: dict[int, list[float]]) -> tuple[float, ...]:
        return tuple(float(spearmanr(by, values).statistic) for values in found.values())

    said = "rank correlation of the margin with "
    ours = order(margins, mccs), order(margins, shares)
    yield Measurement(said + "dictionary MCC", ours[0], "rising, in four settings")
    yield Measurement(said + "the encoder's share", ours[1], "rising, in four settings")
    holds = all(value >= HOLDS for values in ours for value in values)
    yield Measurement(f"the order holds (both at least {HOLDS:g}): 1 yes, 0 no", (float(holds),))
    yield Measurement(said + "code MCC of its own codes", order(margins, owns))
    what = "rank correlation of features per dimension with the encoder's share"
    yield Measurement(what, order(crowds, shares))


TARGETS = [
    Target(
        "margin",
        "a pattern after the fact in four settings of our own: no publication",
        run,
    )
]
