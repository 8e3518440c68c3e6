"""What is scored where, each against its own function; those functions have tests of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sae import SAE
from sae.autoencoder.sites import Transcoder
from sae.autoencoder.sparsity import TopK
from sae.evaluation.baseline_sources import MatchedGaussian
from sae.evaluation.context import Case
from sae.evaluation.evaluate import evaluate
from sae.evaluation.registry import scores
from sae.evaluation.samples import Sample
from sae.evaluation.similarity import Judge
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
    dictionary_mcc_chance,
    dictionary_mcc_signed,
    mmcs,
    mmcs_uniqueness,
)
from sae.metrics.firing import Firing
from sae.metrics.interpretability import (
    cosine_similarity,
    intruder_detection,
    machine_interpretability,
)
from sae.metrics.probing import sparse_probing_balanced_accuracy
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
JUDGED = {"mis", "intruder"}
OUTPUT = {"output_cosine", "output_cosine_mean_ablation"}
LOSSES = {"ce_clean", "ce_sae", "ce_zero_ablation", "ce_mean_ablation", "kl_sae", "loss_recovered"}


def case_of(sae, source, tokens=2000, **options):
    firing, sample = Firing(sae.d_sae), Sample()
    figures = evaluate(sae, source, max_tokens=tokens, firing=firing, sample=sample, **options)
    return Case(sae, source, sample, firing, Judge.of(source)), figures


def with_intervals(found):
    return {name.removesuffix("_low") for name in found if name.endswith("_low")}


@pytest.fixture(scope="module")
def family():
    """A world of trees, and an SAE near its truth."""
    active = Hierarchy(roots=Bernoulli(mean_active=3.0), trees=6, children=2, child_probability=0.6)
    world = World(24, 32, active)
    sae = SAE(24, TopK(d_sae=40, k=4), seed=0)
    noise = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec[:32] = torch.nn.functional.normalize(world.truth + 0.1 * noise).roll(1, 0)
        sae.W_enc[:, :32] = sae.W_dec[:32].T
    return world, sae


@pytest.fixture(scope="module")
def judged(family):
    world, sae = family
    case, figures = case_of(sae, world)
    return case, figures, scores(case)


def test_in_a_world_all_but_what_needs_a_model(judged):
    case, figures, found = judged
    absorbed = {"absorption_full", "absorption_fraction"}
    assert with_intervals(found) == EVERYWHERE | GAP | TRUTH | FAULT | JUDGED | absorbed
    for name in with_intervals(found):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name
    assert scores(case) == found  # the same bits
    for name in ("fvu", "l0", "cosine", "dictionary_mcc_signed", "mmcs", "mmcs_uniqueness"):
        assert found[name] == pytest.approx(figures[name]), name


def test_each_is_what_its_function_says(family, judged):
    world, sae = family
    case, _, found = judged
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
        "dictionary_mcc_signed_chance": dictionary_mcc_chance(world.truth, 40),
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
        "inference_share": found["code_mcc_best"] - found["code_mcc_own"],
        "dictionary_share": found["code_mcc_true"] - found["code_mcc_best"],
        "rest": 1 - found["code_mcc_true"],
        "gap.share": 1 - found["gap.fvu_best"] / found["gap.fvu"],
        "gap.fvu_gap": found["gap.fvu"] - found["gap.fvu_best"],
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


def test_what_is_scored_for_interpretability(judged):
    case, _, found = judged
    alike = cosine_similarity(case.z.to_dense())
    fired = (case.codes.to_dense() != 0).sum(0)
    often = (fired >= 40).nonzero()[:, 0].tolist()
    assert len(often) < 40
    mis = machine_interpretability(case.codes, alike, latents=often)
    assert not mis.isnan().any() and found["mis"] == pytest.approx(mis.mean().item())
    often = (fired >= 16).nonzero()[:, 0].tolist()
    intruder = intruder_detection(case.codes, alike, latents=often)
    assert found["intruder"] == pytest.approx(intruder.mean().item())
    assert found["mis"] > 0.8 and found["intruder"] > 0.6


def test_chance_is_what_codes_of_other_samples_get(judged):
    case, _, found = judged
    assert found["mis_chance"] == found["probe_1_latents_chance"] == 0.5
    assert found["intruder_chance"] == 0.2 and found["fvu_chance"] == 1
    assert found["c_dec_chance"] == pytest.approx(math.sqrt(2 / (math.pi * 24)))
    for name in ("code_mcc", "support_f1", "support_recall", "dci_disentanglement", "mmcs"):
        assert 0 < found[f"{name}_chance"] < 0.7 * found[name], name
    assert found["dci_error_chance"] == pytest.approx(1, abs=0.1)
    # A judge that goes by something else than the latents leaves them at chance.
    shuffled = case.sample.true_codes().to_dense()
    shuffled = shuffled[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    often = (case.firing.counts >= 40).nonzero()[:, 0].tolist()
    alike = cosine_similarity(shuffled)
    mis = machine_interpretability(case.codes, alike, latents=often, tasks=100)
    assert mis.mean().item() == pytest.approx(found["mis_chance"], abs=0.03)
    intruder = intruder_detection(case.codes, alike, latents=often, tasks=100)
    assert intruder.mean().item() == pytest.approx(found["intruder_chance"], abs=0.03)


def test_the_interval_of_c_dec_is_that_of_resampled_latents(judged):
    case, _, found = judged
    rows = torch.nn.functional.normalize(case.sae.W_dec.detach().double())
    cosines = (rows @ rows.T).abs()
    generator = np.random.default_rng(0)
    means = []
    for _ in range(2000):  # every pair weighs as often as both are drawn
        n = torch.from_numpy(np.bincount(generator.integers(40, size=40), minlength=40)).double()
        weights = torch.outer(n, n).fill_diagonal_(0)
        means.append(((weights * cosines).sum() / weights.sum()).item())
    width = found["c_dec_high"] - found["c_dec_low"]
    low, high = np.quantile(means, [0.025, 0.975])
    assert width == pytest.approx(high - low, rel=0.25)  # to first order, of 40 latents


def test_where_the_truth_is_not_known_it_is_left_out(family):
    world, sae = family
    gaussian = MatchedGaussian(world, rows=512)
    gaussian.setup()
    case, _ = case_of(sae, gaussian)
    assert with_intervals(scores(case)) == EVERYWHERE | GAP


def test_a_prediction_of_something_else_has_no_gap():
    class Two(World):
        """The same activations under two names."""

        def block(self, *args):
            block = super().block(*args)
            (x,) = block.acts.values()
            block.acts = {"a": x, "b": x}
            return block

    world = Two(12, 16, Bernoulli(mean_active=2.0))
    world.widths = {"a": 12, "b": 12}
    site = Transcoder(read="a", predict="b").bind(world.widths)
    sae = SAE(12, TopK(d_sae=16, k=2), site=site, seed=0)
    found = scores(case_of(sae, world)[0])
    assert with_intervals(found) == EVERYWHERE | TRUTH | JUDGED


@pytest.mark.parametrize(("kind", "more"), [("causal", OUTPUT | LOSSES), ("encoder", OUTPUT)])
def test_on_text(make_source, sae, kind, more):
    case, figures = case_of(sae, make_source(kind))
    found = scores(case)
    assert with_intervals(found) == EVERYWHERE | GAP | JUDGED | more
    for name in more:
        assert found[name] == pytest.approx(figures[name]), name
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"], name
    assert found["output_cosine_chance"] == found["output_cosine_mean_ablation"]
    if kind == "causal":
        harm = figures["ce_zero_ablation"] - figures["ce_clean"]
        of_mean = (figures["ce_zero_ablation"] - figures["ce_mean_ablation"]) / harm
        assert found["loss_recovered_chance"] == pytest.approx(of_mean)
    case, _ = case_of(sae, make_source(kind), downstream_tokens=0)
    assert with_intervals(scores(case)) == EVERYWHERE | GAP | JUDGED
