"""Every sparsity rule with every site: one step, its files, its folding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae import SAE
from sae.autoencoder.losses import FVU, L0, L1, GateReconstruction, LossTerm
from sae.autoencoder.sites import (
    Autoencoder,
    Crosscoder,
    CrossLayerTranscoder,
    Site,
    SkipTranscoder,
    Transcoder,
)
from sae.autoencoder.sparsity import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    Sparsity,
    TopK,
    Unrolled,
)
from sae.training import Learner, OptimConfig
from sae_kernels import reference
from sae_kernels.codes import Codes

RULES: dict[str, tuple[Sparsity, list[LossTerm]]] = {
    "TopK": (TopK(d_sae=36, k=6), []),
    "BatchTopK": (BatchTopK(d_sae=36, k=6), []),
    "AbsTopK": (AbsTopK(d_sae=36, k=6), []),
    "GroupMax": (GroupMax(d_sae=36, k=6), []),
    "MatchingPursuit": (MatchingPursuit(d_sae=36, k=6), []),
    "ReLU": (ReLU(d_sae=36), [L1()]),
    "JumpReLU": (JumpReLU(d_sae=36), [L0()]),
    "Gated": (Gated(d_sae=36), [L1(), GateReconstruction()]),
    "Unrolled": (Unrolled(d_sae=36, layers=2, step=0.3, theta=0.1), [L1()]),
    "Unrolled-untied": (Unrolled(d_sae=36, layers=2, tied=False, step=0.3, theta=0.1), [L1()]),
}
WIDTHS = {"a": 8, "b": 5, "c": 8, "d": 5}
SITES: dict[str, Site] = {
    "Autoencoder": Autoencoder(hook="a"),
    "Transcoder": Transcoder(read="a", predict="b"),
    "SkipTranscoder": SkipTranscoder(read="a", predict="b"),
    "Crosscoder": Crosscoder(read=("a", "b", "c")),
    "CrossLayerTranscoder": CrossLayerTranscoder(read=("a", "c"), predict=("b", "d")),
}
# Each hook in a unit of its own, so that folding has a scale for each; and off the origin.
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


def learner(rule: str, site: str, *, backend: str = "auto") -> Learner:
    sparsity, penalties = RULES[rule]
    bound = SITES[site].bind({h: WIDTHS[h] for h in SITES[site].hooks})
    sae = SAE(
        bound.d_in, sparsity, site=bound, d_out=bound.d_out, seed=2, dtype=torch.float64
    )  # fmt: skip
    made = Learner(
        sae,
        [FVU(), *penalties],
        OptimConfig(lr=1e-2),
        total_steps=8,
        dead_after=10**6,
        backend=backend,
    )
    made.initialise(activations(0))
    return made


def trained(rule: str, site: str) -> Learner:
    made = learner(rule, site)
    for step in range(4):
        made.step(activations(step))
    return made


def test_every_rule_is_here():
    assert {type(rule) for rule, _ in RULES.values()} == set(Sparsity.registry.values())


def gradients(made: Learner) -> dict[str, Tensor]:
    """Those that wait in parts included."""
    found = {}
    for name, parameter in made.sae.named_parameters():
        grad, parts = parameter.grad, getattr(parameter, "row_grads", None)
        if parts:
            rows = name != "W_enc"
            like = parameter if rows else parameter.t()
            whole = grad if grad is None or rows else grad.t()
            whole = reference.dense_gradient(like.shape, whole, parts)
            grad = whole if rows else whole.t()
        found[name] = torch.zeros_like(parameter) if grad is None else grad
    return found


@each_site
@each_rule
def test_fast_path_has_the_loss_and_gradients_of_the_reference(rule, site):
    start = trained(rule, site).state_dict()
    results = []
    for backend in ("auto", "reference"):
        made = learner(rule, site, backend=backend)
        made.load_state_dict(start)
        forward, loss = made(activations(50))
        loss.backward()
        results.append((loss, forward.codes, gradients(made)))
    (fast, codes, grads), (true, want, true_grads) = results
    torch.testing.assert_close(codes.to_dense(), want.to_dense(), rtol=1e-10, atol=1e-10)
    assert codes.l0().tolist() == want.l0().tolist()
    torch.testing.assert_close(fast, true, rtol=1e-10, atol=0)
    unread = {"W_enc", "b_enc"} if rule == "MatchingPursuit" and codes_are_of_x(site) else set()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, true_grads[name], rtol=1e-8, atol=1e-10, msg=name)
        assert (grad.abs().max() > 1e-6) != (name in unread), f"gradient of {name}"


def codes_are_of_x(site: str) -> bool:
    return SITES[site].reads == SITES[site].predicts


@each_site
@each_rule
def test_slots_are_distinct_and_count_once(rule, site):
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
    made = trained(rule, site).sae
    made.save(tmp_path / "sae")
    loaded = SAE.load(tmp_path / "sae")
    x, _ = made.site.pair(activations(60))
    before, after = made.encode(x), loaded.encode(x)
    assert torch.equal(before.to_dense(), after.to_dense()) and before.fired().any()
    assert torch.equal(made.decode(before, x), loaded.decode(after, x))
    assert loaded.sparsity == made.sparsity and loaded.site == made.site
    for name, tensor in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    for name in made.sparsity.extra_params():
        start = made.sparsity.extra_params()[name].start
        assert (getattr(loaded, name) != start).any(), f"{name} was never learnt"


def assert_folded(inside: Codes, outside: Codes, unit: float) -> None:
    """The same latents fire, and codes are divided by the unit of what is read."""
    inside, outside = inside.to_dense(), outside.to_dense()
    assert torch.equal(inside != 0, outside != 0) and (inside != 0).any()
    torch.testing.assert_close(outside, inside / unit, rtol=1e-9, atol=1e-12)


@each_site
@each_rule
def test_folding_keeps_who_fires_and_divides_codes(rule, site):
    made = trained(rule, site)
    acts = activations(70)
    raw, raw_y = made.sae.site.pair(acts)
    x, _ = made.scaled_pair(acts)
    scales = [made.scale[hook] for hook in made.sae.site.reads]
    assert len(set(scales)) == len(scales), "or one scale alone is tested"
    unit = scales[0] if len(scales) == 1 else 1.0
    exported = made.export()
    inside, outside = made.sae.encode(x), exported.encode(raw)
    assert_folded(inside, outside, unit)
    factor = torch.cat(
        [raw_y.new_full((WIDTHS[h],), made.scale[h]) for h in made.sae.site.predicts]
    )
    want = made.sae.decode(inside, x) / factor
    got = exported.decode(outside, raw)
    torch.testing.assert_close(got * factor, want * factor, rtol=1e-9, atol=1e-9)


@each_site
@each_rule
@pytest.mark.parametrize("scale", [0.013, 77.0])
def test_folding_one_scale_for_all(rule, site, scale):
    made = trained(rule, site)
    x, _ = made.scaled_pair(activations(80))
    assert_folded(made.sae.encode(x), made.sae.fold_scale(scale).encode(x / scale), scale)
