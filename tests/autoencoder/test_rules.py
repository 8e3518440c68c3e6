"""Test every sparsity rule with every site: one step, saving, and folding of scales."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae import SAE
from sae.autoencoder.losses import FVU
from sae.training import Learner, OptimConfig
from sae_kernels.codes import Codes
from tiny import all_rules, all_sites, dense_gradients, penalties, tiny_learner, tiny_rule, tiny_sae

UNROLLED = {"layers": 2, "step": 0.3, "theta": 0.1}
RULES = all_rules(36, k=6, Unrolled=UNROLLED)
RULES["Unrolled-untied"] = tiny_rule("Unrolled", 36, tied=False, **UNROLLED)
WIDTHS = {"a": 8, "b": 5, "c": 8, "d": 5}
SITES = all_sites(("a", "c"), ("b", "d"))
# Each hook has a different scale, so that folding is tested for each, and a mean that is not 0.
UNITS = {"a": 0.01, "b": 3.0, "c": 40.0, "d": 1.0}

each_rule = pytest.mark.parametrize("rule", RULES)
each_site = pytest.mark.parametrize("site", SITES)


def activations(seed: int, batch: int = 24) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.Generator().manual_seed(99)
    hidden = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    acts = {}
    for hook, width in WIDTHS.items():
        into = torch.randn(6, width, generator=mixing, dtype=torch.float64)
        acts[hook] = (hidden @ into + 1.5) * UNITS[hook]
    return acts


def make_learner(rule: str, site: str, *, backend: str = "auto") -> Learner:
    sparsity = RULES[rule]
    sae = tiny_sae(sparsity, SITES[site], WIDTHS, seed=2)
    terms = [FVU(), *penalties(sparsity)]
    learner = tiny_learner(sae, terms, OptimConfig(lr=1e-2), total_steps=8, backend=backend)
    learner.initialise(activations(0))
    return learner


def trained(rule: str, site: str) -> Learner:
    learner = make_learner(rule, site)
    for step in range(4):
        learner.step(activations(step))
    return learner


@each_site
@each_rule
def test_fast_path_equals_the_loss_and_gradients_of_the_reference(rule, site):
    start = trained(rule, site).state_dict()
    results = []
    for backend in ("auto", "reference"):
        learner = make_learner(rule, site, backend=backend)
        learner.load_state_dict(start)
        forward, loss = learner(activations(50))
        loss.backward()
        results.append((loss, forward.codes, dense_gradients(learner.sae)))
    (fast, codes, grads), (true, expected, true_grads) = results
    torch.testing.assert_close(codes.to_dense(), expected.to_dense(), rtol=1e-10, atol=1e-10)
    assert codes.l0().tolist() == expected.l0().tolist()
    torch.testing.assert_close(fast, true, rtol=1e-10, atol=0)
    unread = {"W_enc", "b_enc"} if rule == "MatchingPursuit" and codes_are_of_x(site) else set()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, true_grads[name], rtol=1e-8, atol=1e-10, msg=name)
        assert (grad.abs().max() > 1e-6) != (name in unread), f"gradient of {name}"


def codes_are_of_x(site: str) -> bool:
    return SITES[site].reads == SITES[site].predicts


@each_site
@each_rule
def test_slots_of_a_token_are_distinct(rule, site):
    x = torch.randn(40, width_read(site), generator=torch.Generator().manual_seed(7)).double()
    codes = trained(rule, site).sae.encode(3 * x)
    active = codes.to_dense() != 0
    assert codes.l0().tolist() == active.sum(1).tolist()
    assert torch.equal(codes.fired(), active.any(0)) and active.any()


def width_read(site: str) -> int:
    return sum(WIDTHS[hook] for hook in SITES[site].reads)


@each_site
@each_rule
def test_saved_and_loaded_gives_the_same_bits(rule, site, tmp_path: Path):
    learner = trained(rule, site)
    sae = learner.sae
    sae.save(tmp_path / "sae")
    loaded = SAE.load(tmp_path / "sae")
    x, _ = learner.scaled_pair(activations(60))
    before, after = sae.encode(x), loaded.encode(x)
    assert torch.equal(before.to_dense(), after.to_dense()) and before.fired().any()
    assert torch.equal(sae.decode(before, x), loaded.decode(after, x))
    assert loaded.sparsity == sae.sparsity and loaded.site == sae.site
    for name, tensor in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    for name in sae.sparsity.extra_params():
        start = sae.sparsity.extra_params()[name].start
        assert (getattr(loaded, name) != start).any(), f"{name} was never trained"


def assert_folded(inside: Codes, outside: Codes, unit: float) -> None:
    """Assert that the same latents fire and codes are divided by the scale of the input."""
    inside, outside = inside.to_dense(), outside.to_dense()
    assert torch.equal(inside != 0, outside != 0) and (inside != 0).any()
    torch.testing.assert_close(outside, inside / unit, rtol=1e-9, atol=1e-12)


@each_site
@each_rule
def test_folding_keeps_active_latents_and_divides_codes(rule, site):
    learner = trained(rule, site)
    acts = activations(70)
    raw, raw_y = learner.sae.site.pair(acts)
    x, _ = learner.scaled_pair(acts)
    scales = [learner.scale[hook] for hook in learner.sae.site.reads]
    assert len(set(scales)) == len(scales), "the scales must differ"
    unit = scales[0] if len(scales) == 1 else 1.0
    exported = learner.export()
    inside, outside = learner.sae.encode(x), exported.encode(raw)
    assert_folded(inside, outside, unit)
    predicts, shifts = learner.sae.site.predicts, learner.shifts()
    factor = torch.cat([raw_y.new_full((WIDTHS[h],), learner.scale[h]) for h in predicts])
    expected = learner.sae.decode(inside, x)
    actual = exported.decode(outside, raw)
    shift = torch.cat([shifts[h] for h in predicts])
    torch.testing.assert_close(actual * factor + shift, expected, rtol=1e-9, atol=1e-9)
    # The bits of the old way, for checkpoints without a shift.
    learner.set_shifts(None)
    x, _ = learner.scaled_pair(acts)
    exported = learner.export()
    codes = learner.sae.encode(x)
    assert_folded(codes, exported.encode(raw), unit)
    y_hat = exported.decode(exported.encode(raw), raw)
    expected = learner.sae.decode(codes, x)
    torch.testing.assert_close(y_hat * factor, expected, rtol=1e-9, atol=1e-9)


@each_site
@each_rule
@pytest.mark.parametrize("scale", [0.013, 77.0])
def test_folding_one_scale_for_all_hooks_divides_codes(rule, site, scale):
    learner = trained(rule, site)
    x, _ = learner.scaled_pair(activations(80))
    assert_folded(learner.sae.encode(x), learner.sae.fold_scale(scale).encode(x / scale), scale)
