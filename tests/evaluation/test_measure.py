"""Each kind of run gets the metrics that apply to it, with the values of their functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sae import SAE
from sae.autoencoder.sites import Transcoder
from sae.autoencoder.sparsity import TopK
from sae.evaluation.baseline_sources import MatchedGaussian
from sae.evaluation.context import EvaluationContext
from sae.evaluation.evaluate import evaluate
from sae.evaluation.measure import measure_context
from sae.evaluation.samples import Samples
from sae.evaluation.similarity import SampleSimilarity
from sae.metrics.absorption import absorption_of_parents
from sae.metrics.code_matching import (
    code_mcc_signed,
    match_codes_signed,
    samples_matrix,
    support_per_matched_latent,
)
from sae.metrics.dci import dci
from sae.metrics.decoder_directions import (
    c_dec,
    dictionary_chance,
    dictionary_mcc_chance,
    dictionary_mcc_nulls,
    dictionary_mcc_signed,
    mmcs,
    mmcs_uniqueness,
)
from sae.metrics.firing import Firing
from sae.metrics.interpretability import (
    cosine_similarity,
    intruder_detection,
    machine_interpretability,
    random_relu_projections,
)
from sae.metrics.probing import sparse_probing_balanced_accuracy
from sae.metrics.registry import all_metrics
from sae.worlds import Bernoulli, Hierarchy, World

EVERYWHERE = {"fvu", "l0", "cosine", "shrinkage", "relative_reconstruction_bias"} | {
    "never_fired_fraction",
    "dense_fraction",
    "c_dec",
}
GAP = {"gap.fvu", "gap.fvu_best", "gap.fvu_gap", "gap.share", "gap.lasso_gap"}
TRUTH = {"dictionary_mcc_signed", "mmcs", "mmcs_uniqueness", "code_mcc"} | {
    "support_precision",
    "support_recall",
    "support_f1",
    "dci_disentanglement",
    "dci_completeness",
    "dci_error",
    *(f"probe_{name}" for name in ("1_latents", "2_latents", "5_latents")),
    "probe_activations",
    "probe_dimension",
}
FAULT = {"code_mcc_own", "code_mcc_best", "code_mcc_true"} | {
    "inference_share",
    "dictionary_share",
    "rest",
}
SIMILARITY = {"mis", "intruder"}
OUTPUT = {"output_cosine", "output_cosine_mean_ablation"}
LOSSES = {"ce_clean", "ce_sae", "ce_zero_ablation", "ce_mean_ablation", "kl_sae"} | {
    "ce_difference",
    "loss_recovered",
}


def context_of(sae, source, tokens=2000, **options):
    firing, samples = Firing(sae.d_sae), Samples()
    metrics = evaluate(sae, source, max_tokens=tokens, firing=firing, samples=samples, **options)
    similarity = SampleSimilarity.from_source(source)
    return EvaluationContext(sae, source, samples, firing, similarity), metrics


def test_every_result_is_declared(measured):
    _, _, results = measured
    declared = all_metrics()
    ends = ("_low", "_high", "_chance", "_units")
    names = {name for name in results if not name.endswith(ends)}
    assert names <= set(declared)


def with_intervals(results):
    return {name.removesuffix("_low") for name in results if name.endswith("_low")}


@pytest.fixture(scope="module")
def world_and_sae():
    """Return a world with a hierarchy and an SAE close to its true dictionary."""
    active = Hierarchy(roots=Bernoulli(mean_active=3.0), trees=6, children=2, child_probability=0.6)
    world = World(24, 32, active)
    sae = SAE(24, TopK(d_sae=40, k=4), seed=0)
    noise = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec[:32] = torch.nn.functional.normalize(world.truth + 0.1 * noise).roll(1, 0)
        sae.W_enc[:, :32] = sae.W_dec[:32].T
    return world, sae


@pytest.fixture(scope="module")
def measured(world_and_sae):
    world, sae = world_and_sae
    context, metrics = context_of(sae, world)
    return context, metrics, measure_context(context)


def test_world_has_all_metrics_but_those_of_a_model(measured):
    context, metrics, results = measured
    absorbed = {"absorption_full", "absorption_fraction"}
    assert with_intervals(results) == EVERYWHERE | GAP | TRUTH | FAULT | SIMILARITY | absorbed
    for name in with_intervals(results):
        assert results[f"{name}_low"] <= results[name] <= results[f"{name}_high"], name
    assert measure_context(context) == results  # to the last bit
    for name in ("fvu", "l0", "cosine", "dictionary_mcc_signed", "mmcs", "mmcs_uniqueness"):
        assert results[name] == pytest.approx(metrics[name]), name


def test_each_metric_equals_its_function(world_and_sae, measured):
    world, sae = world_and_sae
    context, _, results = measured
    (x,) = world.block("held_out", 0, 2000, 0).acts.values()
    z, codes = world.codes("held_out", 0, 2000, 0), sae.encode(x)
    matching = match_codes_signed(z, codes)
    support = support_per_matched_latent(z, codes, matching)
    regressed = dci(z, codes)
    latent_of = torch.full((32,), -1)
    latent_of[matching.features] = matching.latents
    args = z, codes, x, sae.W_dec.detach(), world.truth, world.parents, latent_of
    absorbed = list(absorption_of_parents(*args).values())
    assert len(absorbed) == 6
    features = np.random.default_rng(0).permutation(32)[:16]
    labels = torch.from_numpy(samples_matrix(z).toarray()[:, features] != 0)
    probed = sparse_probing_balanced_accuracy(codes, x, labels)
    density = (codes.to_dense() != 0).double().mean(0)
    expected = {
        "c_dec": c_dec(sae.W_dec),
        "dense_fraction": (density > 0.1).double().mean().item(),
        "never_fired_fraction": (density == 0).double().mean().item(),
        "dictionary_mcc_signed": dictionary_mcc_signed(sae.W_dec, world.truth),
        "dictionary_mcc_random": dictionary_mcc_chance(world.truth, 40),
        "mmcs": mmcs(sae.W_dec, world.truth),
        "mmcs_uniqueness": mmcs_uniqueness(sae.W_dec, world.truth),
        "code_mcc": code_mcc_signed(z, codes),
        "code_mcc_own": code_mcc_signed(z, codes),
        "support_precision": support.precision.mean().item(),
        "support_recall": support.recall.mean().item(),
        "support_f1": support.f1.mean().item(),
        "dci_disentanglement": regressed.mean_disentanglement(),
        "dci_completeness": regressed.mean_completeness(),
        "dci_error": regressed.mean_error(),
        "absorption_full": sum(a.full.mean().item() for a in absorbed) / 6,
        "absorption_fraction": sum(a.fraction.mean().item() for a in absorbed) / 6,
        "probe_1_latents": probed.latents[1].nanmean().item(),
        "probe_5_latents": probed.latents[5].nanmean().item(),
        "probe_activations": probed.acts.nanmean().item(),
        "probe_dimension": probed.neuron.nanmean().item(),
        "inference_share": results["code_mcc_best"] - results["code_mcc_own"],
        "dictionary_share": results["code_mcc_true"] - results["code_mcc_best"],
        "rest": 1 - results["code_mcc_true"],
        "gap.share": 1 - results["gap.fvu_best"] / results["gap.fvu"],
        "gap.fvu_gap": results["gap.fvu"] - results["gap.fvu_best"],
    }
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, rel=1e-4), name


def test_interpretability_draws_latents_that_fire_often_enough(measured):
    context, _, results = measured
    similarity = cosine_similarity(context.true_codes.to_dense())
    fired = (context.codes.to_dense() != 0).sum(0)
    often = (fired >= 40).nonzero()[:, 0].tolist()
    assert len(often) < 40
    mis = machine_interpretability(context.codes, similarity, latents=often)
    assert not mis.isnan().any() and results["mis"] == pytest.approx(mis.mean().item())
    often = (fired >= 16).nonzero()[:, 0].tolist()
    intruder = intruder_detection(context.codes, similarity, latents=often)
    assert results["intruder"] == pytest.approx(intruder.mean().item())
    assert results["mis"] > 0.8 and results["intruder"] > 0.6


def test_chance_levels_equal_shuffled_codes(measured):
    context, _, results = measured
    assert results["probe_1_latents_chance"] == 0.5 and results["fvu_chance"] == 1
    assert results["c_dec_chance"] == pytest.approx(math.sqrt(2 / (math.pi * 24)))
    for name in ("code_mcc", "support_f1", "support_recall", "dci_disentanglement"):
        assert 0 < results[f"{name}_chance"] < 0.7 * results[name], name
    assert 0 < results["mmcs_chance"] < 0.8 * results["mmcs"]
    assert results["dci_error_chance"] == pytest.approx(1, abs=0.1)
    # With a similarity that is unrelated to the latents, the scores are near chance.
    shuffled = context.true_codes.to_dense()
    shuffled = shuffled[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    often = (context.firing.counts >= 40).nonzero()[:, 0].tolist()
    similarity = cosine_similarity(shuffled)
    mis = machine_interpretability(context.codes, similarity, latents=often, tasks=100)
    assert mis.mean().item() == pytest.approx(0.5, abs=0.03)
    intruder = intruder_detection(context.codes, similarity, latents=often, tasks=100)
    assert intruder.mean().item() == pytest.approx(0.2, abs=0.03)


def test_chance_of_interpretability_is_that_of_random_projections(measured):
    context, _, results = measured
    similarity = cosine_similarity(context.true_codes.to_dense())
    fired = (context.codes.to_dense() != 0).sum(0).numpy()
    order = np.random.default_rng(0).permutation(40)
    for name, task, least in (
        ("mis", machine_interpretability, 40),
        ("intruder", intruder_detection, 16),
    ):
        counts = fired[order[fired[order] >= least]].tolist()
        random = task(random_relu_projections(context.x, counts), similarity).mean().item()
        assert results[f"{name}_chance"] == pytest.approx(random), name
        assert random < results[name]
    assert results["mis_chance"] > 0.6 and results["intruder_chance"] > 0.3


def test_chance_of_the_dictionary_is_the_larger_null(world_and_sae, measured):
    world, _ = world_and_sae
    context, metrics, results = measured
    (training,) = world.block("train", 0, 4096, 0).acts.values()
    assert torch.equal(context.training_samples, training)
    nulls = dictionary_mcc_nulls(world.truth, 40, training)
    assert results["dictionary_mcc_samples"] > results["dictionary_mcc_random"]
    for name, value in nulls.items():
        assert results[name] == metrics[name] == value, name
    of_samples = dictionary_chance(mmcs, world.truth, 40, samples=training)
    assert results["mmcs_chance"] == of_samples > dictionary_chance(mmcs, world.truth, 40)


def test_c_dec_interval_equals_resampled_latents(measured):
    context, _, results = measured
    rows = torch.nn.functional.normalize(context.sae.W_dec.detach().double())
    cosines = (rows @ rows.T).abs()
    generator = np.random.default_rng(0)
    means = []
    for _ in range(2000):  # a pair counts as often as both of its latents are drawn
        n = torch.from_numpy(np.bincount(generator.integers(40, size=40), minlength=40)).double()
        weights = torch.outer(n, n).fill_diagonal_(0)
        means.append(((weights * cosines).sum() / weights.sum()).item())
    width = results["c_dec_high"] - results["c_dec_low"]
    low, high = np.quantile(means, [0.025, 0.975])
    assert width == pytest.approx(high - low, rel=0.25)  # exact to first order


def test_without_ground_truth_its_metrics_are_left_out(world_and_sae):
    world, sae = world_and_sae
    gaussian = MatchedGaussian(world, rows=512)
    gaussian.setup()
    context, _ = context_of(sae, gaussian)
    assert with_intervals(measure_context(context)) == EVERYWHERE | GAP


def test_transcoder_has_no_amortisation_gap():
    class Two(World):
        """A world that gives its activations under two hooks."""

        def block(self, *args):
            block = super().block(*args)
            (x,) = block.acts.values()
            block.acts = {"a": x, "b": x}
            return block

    world = Two(12, 16, Bernoulli(mean_active=2.0))
    world.widths = {"a": 12, "b": 12}
    site = Transcoder(read="a", predict="b").bind(world.widths)
    sae = SAE(12, TopK(d_sae=16, k=2), site=site, seed=0)
    results = measure_context(context_of(sae, world)[0])
    assert with_intervals(results) == EVERYWHERE | TRUTH | SIMILARITY


@pytest.mark.parametrize(("kind", "more"), [("causal", OUTPUT | LOSSES), ("encoder", OUTPUT)])
def test_metrics_on_text(make_source, sae, kind, more):
    context, metrics = context_of(sae, make_source(kind))
    results = measure_context(context)
    assert with_intervals(results) == EVERYWHERE | GAP | SIMILARITY | more
    for name in more:
        assert results[name] == pytest.approx(metrics[name]), name
        assert results[f"{name}_low"] < results[name] < results[f"{name}_high"], name
    assert results["output_cosine_chance"] == results["output_cosine_mean_ablation"]
    if kind == "causal":
        harm = metrics["ce_zero_ablation"] - metrics["ce_clean"]
        of_mean = (metrics["ce_zero_ablation"] - metrics["ce_mean_ablation"]) / harm
        assert results["loss_recovered_chance"] == pytest.approx(of_mean)
        of_mean = metrics["ce_mean_ablation"] - metrics["ce_clean"]
        assert results["ce_difference_chance"] == pytest.approx(of_mean)
    context, _ = context_of(sae, make_source(kind), downstream_tokens=0)
    assert with_intervals(measure_context(context)) == EVERYWHERE | GAP | SIMILARITY
