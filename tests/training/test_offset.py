"""The mean of the activations does not matter: training is the same wherever it lies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae.autoencoder import SAE
from sae.autoencoder.losses import FVU, L0, L1, AuxK, GateReconstruction
from sae.autoencoder.sites import Autoencoder, Crosscoder, Site, Transcoder
from sae.autoencoder.sparsity import BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.training import Learner, OptimConfig, SparseCoding, SparseCodingLearner, learn_dictionary
from sae.worlds import Exact, HalfNormal, World

WORLD = World(12, 24, Exact(mean_active=3), HalfNormal())
D_SAE, STEPS, BATCH = 48, 30, 128
RULES = {
    "TopK": (TopK(d_sae=D_SAE, k=3), []),
    "BatchTopK": (BatchTopK(d_sae=D_SAE, k=3), []),
    "L1": (ReLU(d_sae=D_SAE), [L1(target_l0=3)]),
    "JumpReLU": (JumpReLU(d_sae=D_SAE), [L0(target_l0=3)]),
    "Gated": (Gated(d_sae=D_SAE), [L1(target_l0=3), GateReconstruction()]),
}
SITES: dict[str, Site] = {
    "Autoencoder": Autoencoder(hook="a"),
    "Transcoder": Transcoder(read="a", predict="b"),
    "Crosscoder": Crosscoder(read=("a", "b")),
}


def samples(index: int, offset: float, size: int = BATCH) -> dict[str, Tensor]:
    """Return samples at two hooks, `offset` standard deviations from the origin."""
    x = WORLD.block("train", index, size, 0).acts["world"].double()
    deviation = 1.7  # sqrt(E|x|^2): 3 active features with squares of 1 on average
    return {
        "a": x + offset * deviation / 12**0.5,
        "b": 7 * (x.roll(3, dims=1) - offset * deviation / 12**0.5),
    }


def trained(rule: str, site: str, offset: float, dtype: torch.dtype, steps: int = STEPS) -> Learner:
    sparsity, penalties = RULES[rule]
    bound = SITES[site].bind(dict.fromkeys(SITES[site].hooks, 12))
    learner = Learner(
        SAE(bound.d_in, sparsity, site=bound, d_out=bound.d_out, dtype=dtype),
        [FVU(), AuxK(), *penalties],
        OptimConfig(),
        total_steps=steps,
        dead_after=10 * BATCH,
        refresh_steps=5,
    )
    learner.initialise(samples(0, offset, 1024))
    for step in range(steps):
        learner.step(samples(step, offset))
    return learner


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("rule", RULES)
def test_offset_changes_no_weight(rule, site):
    learners = [trained(rule, site, offset, torch.float64) for offset in (0.0, 5.0, 20.0)]
    reference = learners[0]
    fvu = reference.pop_metrics()["fvu"]
    for learner, offset in zip(learners[1:], (5.0, 20.0), strict=True):
        assert learner.pop_metrics()["fvu"] == pytest.approx(fvu, rel=1e-6)
        silent = learner.dead.tokens_since_fired
        assert torch.equal(silent, reference.dead.tokens_since_fired)
        for name, value in reference.sae.state_dict().items():
            torch.testing.assert_close(
                learner.sae.state_dict()[name], value, rtol=1e-6, atol=1e-7, msg=name
            )
        # The exported SAEs give the same codes, and predictions that differ by the offset.
        raw, at_zero = samples(99, offset), samples(99, 0.0)
        (x, y), (x_0, y_0) = (learner.sae.site.pair(acts) for acts in (raw, at_zero))
        sae, sae_0 = learner.export(), reference.export()
        codes, codes_0 = sae.encode(x), sae_0.encode(x_0)
        assert codes_0.fired().any()
        torch.testing.assert_close(codes.to_dense(), codes_0.to_dense(), rtol=1e-5, atol=1e-6)
        error, error_0 = y - sae.decode(codes), y_0 - sae_0.decode(codes_0)
        torch.testing.assert_close(error, error_0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_offset_in_float32_changes_only_rounding(rule):
    metrics = [
        trained(rule, "Autoencoder", offset, torch.float32, steps=40).pop_metrics()
        for offset in (0.0, 20.0)
    ]
    assert metrics[1]["fvu"] == pytest.approx(metrics[0]["fvu"], rel=0.01)
    assert metrics[1]["dead_fraction"] == pytest.approx(metrics[0]["dead_fraction"], abs=0.021)


def test_bfloat16_sae_keeps_the_digits_beside_a_large_mean():
    """Rounding activations to bfloat16 before the shift would leave 1 of 20 standard deviations."""
    results = []
    for offset in (0.0, 20.0):
        learner = trained("TopK", "Autoencoder", offset, torch.bfloat16, steps=1)
        results.append(learner.scaled_pair(samples(1, offset))[0])
    assert results[0].dtype == torch.bfloat16
    torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-3)


def test_sparse_coding_does_not_depend_on_the_offset():
    settings = SparseCoding(iterations=10)
    weights, dictionaries = [], []
    for offset in (0.0, 20.0):
        site = Autoencoder(hook="a").bind({"a": 12})
        learner = SparseCodingLearner(
            SAE(12, TopK(d_sae=24, k=3), site=site, dtype=torch.float64),
            [FVU()],
            OptimConfig(),
            settings=settings,
            total_steps=20,
            dead_after=10**6,
        )
        learner.initialise(samples(0, offset, 1024))
        for step in range(20):
            learner.step(samples(step, offset))
        weights.append(learner.sae.W_dec.detach())
        dictionary = learn_dictionary(samples(0, offset)["a"], 24, settings, steps=20)
        dictionaries.append((dictionary.W_dec, dictionary.b_dec - offset * 1.7 / 12**0.5))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(dictionaries[1], dictionaries[0], rtol=1e-6, atol=1e-7)
