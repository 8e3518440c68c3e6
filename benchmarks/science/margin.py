"""Test whether the margin d / delta predicts which part of an SAE fails: dictionary or encoder.

Four earlier settings suggested that near 1 the dictionary fails, and above about 2 only the
encoder. Here are ten worlds of equally frequent features with half-normal values, exactly k active
at a time, chosen so that margins from 1.3 to 3.1 do not correlate with features per dimension. TopK
with as many latents as features and default settings trains on 1,536,000 samples. Code MCC is
measured for all four combinations of {learned, true} dictionary and {own, best} codes.
"""

from __future__ import annotations

from collections.abc import Iterator

from scipy.stats import spearmanr

from benchmarks.science.nulls import mcc_nulls
from benchmarks.science.target import Measurement, Target
from sae import SAE
from sae.activations import Stream
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.metrics.capacity import capacity
from sae.metrics.decoder_directions import dictionary_mcc_nulls, dictionary_mcc_signed
from sae.metrics.inference_or_dictionary import InferenceOrDictionary, inference_or_dictionary
from sae.training import Learner, OptimConfig, defaults
from sae.worlds import SparseSuperposition

# Features, dimensions, active features.
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
MIN_CORRELATION = 0.8  # for the pattern to count as confirmed


def train(world: SparseSuperposition, k: int, seed: int) -> SAE:
    """Train an SAE on a world."""
    site = Autoencoder().bind(world.widths)
    sae = SAE(world.d_in, TopK(d_sae=world.n_features, k=k), site=site, seed=seed)
    dead_after = defaults.dead_after(world.n_features, k, STEPS * BATCH)
    learner = Learner(sae, [FVU(), AuxK()], OptimConfig(), total_steps=STEPS, dead_after=dead_after)
    stream = Stream(world, batch_size=BATCH, block_batches=50, seed=seed)
    learner.initialise(stream.first_block().acts)
    for _, batch in zip(range(STEPS), stream, strict=False):
        learner.step(batch.acts)
    return learner.export()


def measure(shape: tuple[int, int, int], seed: int) -> tuple[float, InferenceOrDictionary]:
    """Return the dictionary MCC, and code MCC for the four combinations."""
    features, d, k = shape
    world = SparseSuperposition(d, features, k, active="exact", dictionary_seed=seed)
    sae = train(world, k, seed)
    (x,) = world.block("held_out", 0, HELD_OUT, 0).acts.values()
    z = world.codes("held_out", 0, HELD_OUT, 0)
    mcc = dictionary_mcc_signed(sae.W_dec, world.truth)
    return mcc, inference_or_dictionary(sae, x, z, world.truth)


def encoder_share(split: InferenceOrDictionary) -> float:
    """Return the share of better codes in the code MCC gained by better codes and dictionary."""
    return split.inference_share / (split.inference_share + split.dictionary_share)


def run() -> Iterator[Measurement]:
    """Yield the metrics of each world, and their rank correlations with the margin."""
    margins = [capacity(d, features, k).margin for features, d, k in WORLDS]
    densities = [features / d for features, d, _ in WORLDS]
    mccs: dict[int, list[float]] = {seed: [] for seed in SEEDS}
    shares: dict[int, list[float]] = {seed: [] for seed in SEEDS}
    own_codes: dict[int, list[float]] = {seed: [] for seed in SEEDS}
    for (features, d, k), margin in zip(WORLDS, margins, strict=True):
        nulls = []
        for seed in SEEDS:
            mcc, split = measure((features, d, k), seed)
            mccs[seed].append(mcc)
            shares[seed].append(encoder_share(split))
            own_codes[seed].append(split.code_mcc_own)
            world = SparseSuperposition(d, features, k, active="exact", dictionary_seed=seed)
            (x,) = world.block("train", 0, HELD_OUT, 0).acts.values()
            nulls.append(dictionary_mcc_nulls(world.truth, features, x))
        prefix = f"{features} features, d {d}, k {k}, margin {margin:.2f}: "
        last = lambda by_seed: tuple(values[-1] for values in by_seed.values())
        yield Measurement(prefix + "dictionary MCC", last(mccs))
        yield from mcc_nulls(nulls, prefix)
        yield Measurement(prefix + "share of the loss that is the encoder's", last(shares))

    def rank_correlations(by: list[float], by_seed: dict[int, list[float]]) -> tuple[float, ...]:
        return tuple(float(spearmanr(by, values).statistic) for values in by_seed.values())

    prefix = "rank correlation of the margin with "
    ours = rank_correlations(margins, mccs), rank_correlations(margins, shares)
    yield Measurement(prefix + "dictionary MCC", ours[0], "rising, in four settings")
    yield Measurement(prefix + "the encoder's share", ours[1], "rising, in four settings")
    holds = all(value >= MIN_CORRELATION for values in ours for value in values)
    yield Measurement(
        f"the order holds (both at least {MIN_CORRELATION:g}): 1 yes, 0 no", (float(holds),)
    )
    yield Measurement(prefix + "code MCC of its own codes", rank_correlations(margins, own_codes))
    what = "rank correlation of features per dimension with the encoder's share"
    yield Measurement(what, rank_correlations(densities, shares))


TARGETS = [
    Target(
        "margin",
        "a pattern after the fact in four settings of our own: no publication",
        run,
    )
]
