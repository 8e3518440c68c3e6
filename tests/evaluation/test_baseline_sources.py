"""Sources of baselines: random weights, matched noise, and a frozen decoder."""

from __future__ import annotations

import pytest
import torch

from sae import SAE
from sae.activations import Batch, Source
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.evaluation.baseline_sources import MatchedGaussian, frozen_decoder
from sae.training import Learner, OptimConfig
from sae.worlds import SparseSuperposition


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_random_weights_twin_reads_the_same_tokens(make_source, kind):
    source = make_source(kind)
    state = torch.get_rng_state()
    (hook,) = source.widths
    blocks = []
    for seed in (3, 3, 4):
        baseline = source.random_weights_twin(seed)
        baseline.setup()
        blocks.append(baseline.block("train", 0, 100, 0))
    trained = source.block("train", 0, 100, 0)
    assert torch.equal(blocks[0].acts[hook], blocks[1].acts[hook])
    assert not torch.equal(blocks[0].acts[hook], blocks[2].acts[hook])
    assert not torch.isclose(blocks[0].acts[hook], trained.acts[hook]).any(1).all()
    for name in ("token", "document", "position"):
        assert torch.equal(blocks[0].provenance[name], trained.provenance[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert baseline.metadata() == source.metadata() | {"random_weights": 4}
    # Weights have the standard deviation of the configuration, except in a few layers of GPT-2.
    matrices = [w for name, w in baseline.model.model.named_parameters() if w.dim() == 2]
    expected = baseline.model.model.config.initializer_range
    std = torch.cat([w.flatten() for w in matrices]).std().item()
    assert std == pytest.approx(expected, rel=0.2)


def test_world_has_no_random_weights_twin():
    assert SparseSuperposition(8, 16, 2).random_weights_twin() is None


class CorrelatedHooks(Source):
    """A source of two correlated hooks with a non-zero mean and one constant dimension."""

    def setup(self, device="cpu"):
        self.widths = {"a": 2, "b": 2}

    def block(self, split, index, size, seed):
        generator = torch.Generator().manual_seed(seed + index)
        s = torch.rand(size, 3, generator=generator)
        x = torch.stack([s[:, 0] + 5, s[:, 1] - s[:, 0], 3 * s[:, 0] + s[:, 2], 0 * s[:, 0] + 2], 1)
        return Batch({"a": x[:, :2], "b": x[:, 2:]})

    def metadata(self):
        return {"two": 2}


def test_matched_gaussian_has_mean_and_covariance_of_all_hooks():
    baseline = MatchedGaussian(CorrelatedHooks(), rows=20_000)
    baseline.setup()
    assert baseline.widths == {"a": 2, "b": 2}
    # Uniform numbers have variance 1 / 12 and mean 1 / 2.
    assert baseline.mean.tolist() == pytest.approx([5.5, 0, 2, 2], abs=0.02)
    expected = torch.tensor([[1.0, -1, 3, 0], [-1, 2, -3, 0], [3, -3, 10, 0], [0, 0, 0, 0]]) / 12
    torch.testing.assert_close(baseline.covariance.float(), expected, atol=0.02, rtol=0)
    batch = baseline.block("train", 2, 20_000, 0)
    x = torch.cat([batch.acts["a"], batch.acts["b"]], 1).double()
    assert batch.acts["a"].dtype == torch.float32
    torch.testing.assert_close(x.mean(0), baseline.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(correction=0), baseline.covariance, atol=0.03, rtol=0)
    # Uniform numbers lie within sqrt 3 standard deviations of their mean.
    outside = (x[:, 0] - 5.5).abs() > (3 / 12) ** 0.5
    assert outside.double().mean().item() == pytest.approx(0.083, abs=0.01)
    assert len(batch) == 20_000 and batch.provenance is None
    assert baseline.metadata() == {"gaussian_like": {"two": 2}, "rows": 20_000}


def test_gaussian_blocks_depend_only_on_their_arguments():
    baseline, again = (MatchedGaussian(CorrelatedHooks(), rows=100) for _ in range(2))
    again.setup()
    again.setup()
    for key in (("train", 0, 10, 0), ("train", 1, 10, 0), ("held_out", 0, 10, 0)):
        assert torch.equal(baseline.block(*key).acts["a"], again.block(*key).acts["a"])
    keys = [
        ("train", 0, 10, 0),
        ("train", 1, 10, 0),
        ("held_out", 0, 10, 0),
        ("train", 0, 10, 1),
    ]
    assert len({baseline.block(*key).acts["a"].sum().item() for key in keys}) == 4


def test_frozen_decoder_does_not_change_while_the_encoder_learns():
    optim = frozen_decoder(OptimConfig(lr=1e-2, lr_factors={"b_enc": 0.5}))
    assert optim.lr_factors == {"b_enc": 0.5, "W_dec": 0.0} and optim.lr == 1e-2
    world = SparseSuperposition(16, 32, 3)
    sae = SAE(16, TopK(d_sae=32, k=3), site=Autoencoder().bind(world.widths))
    learner = Learner(sae, [FVU(), AuxK()], optim, total_steps=60, dead_after=1000)
    start, first = sae.W_dec.detach().clone(), sae.W_enc.detach().clone()
    fvu = []
    for step in range(60):
        acts = world.block("train", step, 256, 0).acts
        if step == 0:
            learner.initialise(acts)
        learner.step(acts)
        fvu.append(learner.pop_metrics()["fvu"])
    torch.testing.assert_close(sae.W_dec.detach(), start, atol=1e-6, rtol=0)
    assert not torch.allclose(sae.W_enc, first, atol=1e-2)
    assert fvu[-1] < 0.8 * fvu[0]
