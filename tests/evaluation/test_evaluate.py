"""Held-out metrics of worlds and models against direct computation."""

from __future__ import annotations

import json

import pytest
import torch

from sae import SAE, UserError
from sae.activations import Batch, Provenance, Source
from sae.autoencoder.sparsity import TopK
from sae.evaluation.evaluate import evaluate
from sae.evaluation.samples import Samples
from sae.metrics.firing import Firing
from sae.worlds import SparseSuperposition

ALWAYS = {"tokens", "fvu", "l0", "cosine", "shrinkage", "never_fired_fraction"} | {
    "relative_reconstruction_bias",
}
MODEL = {"output_cosine", "output_cosine_mean_ablation", "downstream_tokens"}
LOSSES = {"ce_tokens", "ce_clean", "ce_sae", "ce_zero_ablation", "ce_mean_ablation"} | {
    "ce_difference",
    "loss_recovered",
    "kl_sae",
}
WORLD = {"dictionary_mcc_signed", "dictionary_mcc_signed_chance", "mmcs", "mmcs_uniqueness"} | {
    "dictionary_mcc_random",
    "dictionary_mcc_samples",
}


def check(metrics):
    assert all(type(value) in (int, float) for value in metrics.values())
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize(
    ("kind", "keys"), [("causal", ALWAYS | MODEL | LOSSES), ("encoder", ALWAYS | MODEL)]
)
def test_metrics_on_a_model_match_direct_computation(make_source, sae, kind, keys):
    source = make_source(kind)
    firing = Firing(sae.d_sae)
    metrics = evaluate(sae, source, firing=firing)
    check(metrics)
    assert set(metrics) == keys

    block = source.block("held_out", 0, 10**6, 0)
    (x,) = block.acts.values()
    codes = sae.encode(x)
    x_hat = sae.decode(codes)
    assert metrics["tokens"] == len(x) == metrics["downstream_tokens"] == firing.tokens
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert metrics["fvu"] == pytest.approx(fvu.item(), rel=1e-5)
    assert metrics["l0"] == pytest.approx((codes.to_dense() != 0).sum(1).double().mean().item())
    silent = ~(codes.to_dense() != 0).any(0)
    assert metrics["never_fired_fraction"] == pytest.approx(silent.double().mean().item())


def test_mean_ablation_uses_the_mean_of_the_evaluated_set(make_source, sae):
    source = make_source()
    (x,) = source.block("held_out", 0, 10**6, 0).acts.values()
    from sae.metrics.downstream import downstream

    expected = downstream(sae, source, mean=x.double().mean(0))
    assert evaluate(sae, source)["ce_mean_ablation"] == pytest.approx(expected.ce_mean_ablation)


def test_limits_on_tokens_leave_out_downstream_metrics(make_source, sae):
    metrics = evaluate(sae, make_source(), max_tokens=200, downstream_tokens=0)
    assert metrics["tokens"] == 200
    assert set(metrics) == ALWAYS


@pytest.mark.parametrize("max_tokens", [1, 4096, 5000])
def test_reads_exactly_max_tokens(max_tokens):
    world = SparseSuperposition(d_in=8, n_features=16, mean_active=2)
    metrics = evaluate(SAE(8, TopK(d_sae=16, k=2)), world, max_tokens=max_tokens)
    assert metrics["tokens"] == max_tokens


def test_world_adds_dictionary_metrics():
    world = SparseSuperposition(d_in=24, n_features=32, mean_active=2, active="exact")
    sae = SAE(24, TopK(d_sae=40, k=2))
    metrics = evaluate(sae, world, max_tokens=2000)
    check(metrics)
    assert set(metrics) == ALWAYS | WORLD
    with torch.no_grad():
        sae.W_dec[:32] = world.truth.flip(0)
    at_truth = evaluate(sae, world, max_tokens=2000)
    assert at_truth["dictionary_mcc_signed"] == pytest.approx(1, abs=1e-5)
    assert metrics["dictionary_mcc_signed"] < 0.7
    assert at_truth["dictionary_mcc_random"] == metrics["dictionary_mcc_random"] < 0.7
    assert at_truth["dictionary_mcc_samples"] == metrics["dictionary_mcc_samples"] > 0.7
    assert at_truth["dictionary_mcc_signed_chance"] == metrics["dictionary_mcc_samples"]


def test_empty_held_out_split_raises_user_error():
    class Empty(SparseSuperposition):
        def block(self, split, index, size, seed):
            return super().block(split, index, size, seed).rows(slice(0))

    with pytest.raises(UserError, match="held-out split has no activations"):
        evaluate(SAE(8, TopK(d_sae=16, k=2)), Empty(d_in=8, n_features=16, mean_active=2))


def test_samples_store_the_rows_that_were_read():
    world = SparseSuperposition(d_in=24, n_features=32, mean_active=2, noise=0.1)
    sae, samples = SAE(24, TopK(d_sae=40, k=3)), Samples(max_rows=4500)
    with torch.no_grad():
        sae.b_enc -= 0.3  # so that fewer than 3 latents fire on some rows
    metrics = evaluate(sae, world, max_tokens=5000, samples=samples, seed=3)
    blocks = [world.block("held_out", i, 4096, 3) for i in (0, 1)]
    x = torch.cat([block.acts["world"] for block in blocks])[:4500]
    assert torch.equal(samples.x, x)
    assert samples.provenance is None
    z = torch.cat([world.codes("held_out", i, 4096, 3).to_dense() for i in (0, 1)])[:4500]
    assert torch.equal(samples.true_codes().to_dense(), z.double())
    torch.testing.assert_close(samples.codes().to_dense(), sae.encode(x).to_dense().double())
    scores = samples.scores()
    assert set(scores) == ALWAYS - {"tokens", "never_fired_fraction"}
    for name, score in scores.items():  # `metrics` are over all 5,000 rows
        assert score.value == pytest.approx(metrics[name], rel=1e-6), name
        assert score.low < score.value < score.high, name


class Repeats(Source):
    """A world in which every row is repeated four times, in documents of `rows` rows."""

    def __init__(self, rows):
        self.world, self.rows = SparseSuperposition(d_in=24, n_features=32, mean_active=2), rows
        self.widths = self.world.widths

    def block(self, split, index, size, seed):
        block = self.world.block(split, index, size // 4, seed)
        block = block.rows(torch.arange(size) // 4)
        document = torch.arange(size) // self.rows
        return Batch(block.acts, Provenance({"document": document}, cluster="document"))


def test_rows_of_one_document_count_as_one_unit():
    sae, widths = SAE(24, TopK(d_sae=40, k=3)), []
    for rows in (4, 1):
        samples = Samples()
        evaluate(sae, Repeats(rows), max_tokens=2048, samples=samples)
        assert samples.true_codes() is None
        fvu = samples.scores()["fvu"]
        widths.append(fvu.high - fvu.low)
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.15)  # four times fewer clusters


@pytest.mark.parametrize("documents", [1, 3])
def test_few_documents_give_no_interval_and_their_number(documents):
    samples = Samples()
    source = Repeats(rows=2048 // documents + 1)
    evaluate(SAE(24, TopK(d_sae=40, k=3)), source, max_tokens=2048, samples=samples)
    for name, score in samples.scores().items():
        assert score.entries(name) == {name: score.value, f"{name}_units": documents}
