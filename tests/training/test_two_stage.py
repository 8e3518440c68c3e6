"""A run in two parts: the dictionary is found in the first and held in the second."""

from __future__ import annotations

import pytest
import torch

from sae.autoencoder import SAE
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


def learner(rule=None, steps: int = 40, objective=None, optim=None, **more) -> SparseCodingLearner:
    settings = more.pop("settings", SparseCoding(iterations=10, bias=False))
    sae = SAE(12, rule or TopK(d_sae=16, k=2), site=Autoencoder().bind({"world": 12}))
    one = SparseCodingLearner(
        sae,
        objective or [FVU()],
        optim or OptimConfig(lr=1e-2),
        settings=settings,
        total_steps=steps,
        dead_after=10_000,
        **more,
    )
    one.initialise(batch(0, 512))
    return one


def weights(one: SparseCodingLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.sae.state_dict().items()}


def test_the_dictionary_is_learnt_then_held_while_the_encoder_is():
    settings = SparseCoding(iterations=10, bias=False, restarts=4)
    one = learner(steps=120, objective=[FVU()], ema=0.9, settings=settings)
    for index in range(60):
        assert one.in_first_part
        one.step(batch(index))
    assert not one.in_first_part and one.tokens == 60 * 128
    first = weights(one)
    assert torch.equal(first["W_dec"], one.coder.D[one.coder.best()])
    assert torch.equal(first["W_enc"], first["W_dec"].t())
    assert dictionary_mcc_signed(first["W_dec"], WORLD.truth) > 0.98
    row = one.pop_metrics()
    assert row.keys() >= {"objective", "fvu", "l0", "penalty", "replaced_atoms", "dead_fraction"}
    x, _ = one.scaled_pair(batch(0))
    before = x.sub(one.sae.decode(one.sae.encode(x))).square().sum()
    for index in range(60, 120):
        one.step(batch(index))
    last = weights(one)
    assert torch.equal(last["W_dec"], first["W_dec"]) and torch.equal(last["b_dec"], first["b_dec"])
    assert not torch.equal(last["W_enc"], first["W_enc"])
    assert x.sub(one.sae.decode(one.sae.encode(x))).square().sum() < 0.9 * before
    assert one.current_lr < 0.1 * one.lr  # the schedule is over the second part
    for sae in (one.export(), one.export(ema=True)):
        torch.testing.assert_close(sae.W_dec, first["W_dec"], atol=1e-5, rtol=0)
    assert one.pop_metrics().keys() >= {"loss", "fvu", "l0", "lr"}


def test_schedules_begin_with_the_second_part():
    one = learner(optim=OptimConfig(lr=1.0, warmup=0.5, decay=0.2), steps=40)
    rates = []
    for index in range(40):
        one.step(batch(index))
        rates.append(one.current_lr)
    assert rates[20:25] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_predictions_of_the_first_part_are_those_of_sparse_coding():
    one = learner()
    for index in range(5):
        one.step(batch(index))
    y, y_hat, codes = one.predict(batch(7))
    z = one.coder.codes(y, 10)[0]
    assert torch.equal(codes.to_dense(), z)
    torch.testing.assert_close(y_hat, z @ one.sae.W_dec)
    for index in range(5, 25):
        one.step(batch(index))
    y, y_hat, codes = one.predict(batch(7))
    assert codes.l0().float().mean() <= 2
    assert torch.equal(y_hat, one.sae.decode(codes))


def test_b_dec_starts_at_the_median_and_is_learnt_unless_told_otherwise():
    shifted = {"world": batch(0)["world"] + 3}
    one = learner(settings=SparseCoding(iterations=10))
    one.initialise(shifted)
    assert (one.coder.b[0] * 1 > 0).all() and torch.equal(one.coder.b[0], one.sae.b_dec)
    one.step(shifted)
    assert torch.equal(one.coder.b[0], one.sae.b_dec)
    assert not learner().sae.b_dec.any()


def test_micro_batches_are_one_batch():
    one, other = learner(), learner()
    for index in range(3):
        whole = batch(index)["world"]
        one.step({"world": whole})
        other.step({"world": whole[:64]}, {"world": whole[64:]})
    assert torch.equal(one.sae.W_dec, other.sae.W_dec) and one.tokens == other.tokens


@pytest.mark.parametrize("name", ["adam", "adamw", "signum", "muon"])
def test_every_optimiser_leaves_the_dictionary(name):
    one = learner(
        Unrolled(d_sae=16, layers=2),
        objective=[FVU(), L1(coefficient=1e-3)],
        optim=OptimConfig(name=name, lr=1e-2, clip_norm=None if name == "signum" else 1.0),
        steps=10,
    )
    for index in range(10):
        one.step(batch(index))
        if index == 4:
            first = weights(one)
    last = weights(one)
    assert torch.equal(last["W_dec"], first["W_dec"]) and torch.equal(last["b_dec"], first["b_dec"])
    for moved in ("W_enc", "b_enc", "step", "theta"):
        assert not torch.equal(last[moved], first[moved]), moved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": MatchingPursuit(d_sae=16, k=2)}, "MatchingPursuit has none"),
        ({"resample_every": 10}, "resample_every=10 changes the dictionary"),
        ({"steps": 1}, "share=0.5 of 1 steps leaves no step"),
    ],
)
def test_what_cannot_be_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        learner(**change)


def test_other_sites_are_refused():
    site = Transcoder(read="a", predict="b").bind({"a": 12, "b": 12})
    sae = SAE(12, TopK(d_sae=16, k=2), site=site, d_out=12)
    with pytest.raises(UserError, match="Transcoder predicts something else"):
        SparseCodingLearner(
            sae, [FVU()], OptimConfig(), settings=SparseCoding(), total_steps=9, dead_after=9
        )
