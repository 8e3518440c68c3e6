"""A run in two parts: the first learns the dictionary, the second trains the encoder."""

from __future__ import annotations

import math

import pytest
import torch

from sae.autoencoder import SAE
from sae.autoencoder.init import geometric_median
from sae.autoencoder.losses import FVU, L1
from sae.autoencoder.sites import Autoencoder, Transcoder
from sae.autoencoder.sparsity import MatchingPursuit, TopK, Unrolled
from sae.errors import UserError
from sae.metrics.decoder_directions import dictionary_mcc_signed
from sae.training import OptimConfig, SparseCoding, SparseCodingLearner
from sae.worlds import Exact, HalfNormal, World

WORLD = World(12, 16, Exact(mean_active=2), HalfNormal())


def batch(index: int, size: int = 128) -> dict[str, torch.Tensor]:
    return WORLD.block("train", index, size, 0).acts


def make_learner(
    rule=None, steps: int = 40, losses=None, optim=None, **kwargs
) -> SparseCodingLearner:
    settings = kwargs.pop("settings", SparseCoding(iterations=10, bias=False))
    sae = SAE(12, rule or TopK(d_sae=16, k=2), site=Autoencoder().bind({"world": 12}))
    trained = SparseCodingLearner(
        sae,
        losses or [FVU()],
        optim or OptimConfig(lr=1e-2),
        settings=settings,
        total_steps=steps,
        dead_after=10_000,
        **kwargs,
    )
    trained.initialise(batch(0, 512))
    return trained


def weights(trained: SparseCodingLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.sae.state_dict().items()}


def test_first_part_learns_the_dictionary_and_second_the_encoder():
    settings = SparseCoding(iterations=10, bias=False, restarts=4)
    trained = make_learner(steps=120, losses=[FVU()], ema=0.9, settings=settings)
    for index in range(60):
        assert trained.in_first_part
        trained.step(batch(index))
    assert not trained.in_first_part and trained.tokens == 60 * 128
    first = weights(trained)
    assert torch.equal(first["W_dec"], trained.coder.D[trained.coder.best()])
    assert torch.equal(first["W_enc"], first["W_dec"].t())
    assert dictionary_mcc_signed(first["W_dec"], WORLD.truth) > 0.98
    row = trained.pop_metrics()
    assert row.keys() >= {"objective", "fvu", "l0", "penalty", "replaced_atoms", "dead_fraction"}
    x, _ = trained.scaled_pair(batch(0))
    before = x.sub(trained.sae.decode(trained.sae.encode(x))).square().sum()
    for index in range(60, 120):
        trained.step(batch(index))
    last = weights(trained)
    assert torch.equal(last["W_dec"], first["W_dec"]) and torch.equal(last["b_dec"], first["b_dec"])
    assert not torch.equal(last["W_enc"], first["W_enc"])
    assert x.sub(trained.sae.decode(trained.sae.encode(x))).square().sum() < 0.9 * before
    assert trained.current_lr < 0.1 * trained.lr  # the schedule is over the second part
    for sae in (trained.export(), trained.export(ema=True)):
        torch.testing.assert_close(sae.W_dec, first["W_dec"], atol=1e-5, rtol=0)
    assert trained.pop_metrics().keys() >= {"loss", "fvu", "l0", "lr"}


def test_schedules_start_in_the_second_part():
    trained = make_learner(optim=OptimConfig(lr=1.0, warmup=0.5, decay=0.2), steps=40)
    rates = []
    for index in range(40):
        trained.step(batch(index))
        rates.append(trained.current_lr)
    assert rates[20:25] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_predict_uses_sparse_coding_in_the_first_part():
    trained = make_learner()
    for index in range(5):
        trained.step(batch(index))
    y, y_hat, codes = trained.predict(batch(7))
    z = trained.coder.codes(y, 10)[0]
    assert torch.equal(codes.to_dense(), z)
    torch.testing.assert_close(y_hat, z @ trained.sae.W_dec)
    for index in range(5, 25):
        trained.step(batch(index))
    y, y_hat, codes = trained.predict(batch(7))
    assert codes.l0().float().mean() <= 2
    assert torch.equal(y_hat, trained.sae.decode(codes))


def test_b_dec_starts_at_the_median_and_stays_zero_without_bias():
    shifted = {"world": batch(0)["world"] + 3}
    trained = make_learner(settings=SparseCoding(iterations=10))
    trained.initialise(shifted)
    median = geometric_median(shifted["world"])
    torch.testing.assert_close(trained.export().b_dec.double(), median, rtol=1e-5, atol=1e-5)
    trained.step(shifted)
    assert torch.equal(trained.coder.b[0], trained.sae.b_dec) and trained.sae.b_dec.any()
    without = make_learner()
    without.initialise(shifted)
    without.step(shifted)
    assert without.shift is None and not without.export().b_dec.any()
    norm = shifted["world"].double().norm(dim=1).mean().item()
    assert without.scale["world"] == math.sqrt(shifted["world"].shape[1]) / norm


def test_micro_batches_equal_one_batch():
    trained, with_micro_batches = make_learner(), make_learner()
    for index in range(3):
        samples = batch(index)["world"]
        trained.step({"world": samples})
        with_micro_batches.step({"world": samples[:64]}, {"world": samples[64:]})
    assert torch.equal(trained.sae.W_dec, with_micro_batches.sae.W_dec)
    assert trained.tokens == with_micro_batches.tokens


@pytest.mark.parametrize("name", ["adam", "adamw", "signum", "muon"])
def test_no_optimizer_changes_the_dictionary_in_the_second_part(name):
    trained = make_learner(
        Unrolled(d_sae=16, layers=2),
        losses=[FVU(), L1(coefficient=1e-3)],
        optim=OptimConfig(name=name, lr=1e-2, clip_norm=None if name == "signum" else 1.0),
        steps=10,
    )
    for index in range(10):
        trained.step(batch(index))
        if index == 4:
            first = weights(trained)
    last = weights(trained)
    assert torch.equal(last["W_dec"], first["W_dec"]) and torch.equal(last["b_dec"], first["b_dec"])
    for name in ("W_enc", "b_enc", "step", "theta"):
        assert not torch.equal(last[name], first[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": MatchingPursuit(d_sae=16, k=2)}, "MatchingPursuit has none"),
        ({"resample_every": 10}, "resample_every=10 changes the dictionary"),
        ({"steps": 1}, "share=0.5 of 1 steps leaves no step"),
    ],
)
def test_settings_that_exclude_sparse_coding_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        make_learner(**change)


def test_transcoder_is_refused():
    site = Transcoder(read="a", predict="b").bind({"a": 12, "b": 12})
    sae = SAE(12, TopK(d_sae=16, k=2), site=site, d_out=12)
    with pytest.raises(UserError, match="Transcoder predicts something else"):
        SparseCodingLearner(
            sae, [FVU()], OptimConfig(), settings=SparseCoding(), total_steps=9, dead_after=9
        )
