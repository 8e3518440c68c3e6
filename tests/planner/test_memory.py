"""What a run takes, before it is built: exact where it is a count, and packed into waves."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import sae.autoencoder.losses as losses
import sae.autoencoder.sites as sites
import sae.autoencoder.sparsity as sparsity
from sae.cli.config import parse_config
from sae.errors import UserError
from sae.planner import memory
from sae.planner import system as free_memory
from sae.training import OptimConfig
from sae.training.run_settings import RunSettings
from sae.training.train_config import TrainConfig

WIDTHS = {"a": 16, "b": 16, "c": 24}
RULES = [
    sparsity.TopK(d_sae=60, k=4),
    sparsity.BatchTopK(d_sae=60, k=4),
    sparsity.AbsTopK(d_sae=60, k=4),
    sparsity.GroupMax(d_sae=60, k=4),
    sparsity.MatchingPursuit(d_sae=60, k=4),
    sparsity.ReLU(d_sae=60),
    sparsity.JumpReLU(d_sae=60),
    sparsity.Gated(d_sae=60),
    sparsity.Unrolled(d_sae=60),
    sparsity.Unrolled(d_sae=60, tied=False, layers=3),
]
SITES = [
    sites.Autoencoder(hook="a"),
    sites.Transcoder(read="a", predict="c"),
    sites.SkipTranscoder(read="a", predict="c"),
    sites.Crosscoder(),
    sites.CrossLayerTranscoder(read=("a", "b"), predict=("b", "a")),
]


def recipe(rule, site=None, terms=(), **more):
    terms = [losses.FVU(), *terms]
    if rule.needs_penalty:
        terms.append(losses.L1(coefficient=0.1))
    return TrainConfig(rule, site or SITES[0], terms, **more)


def held(tensors) -> int:
    return sum(t.numel() * t.itemsize for t in tensors)


def test_every_rule_is_here():
    assert set(sparsity.Sparsity.registry.values()) == {type(rule) for rule in RULES}
    named = {getattr(sites, name) for name in sites.__all__} - {sites.Site}
    assert named == {type(site) for site in SITES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_needs_are_those_of_the_real_learner(rule):
    for site, dtype in itertools.product(SITES, ("float32", "bfloat16")):
        one = recipe(rule, site, dtype=dtype, ema=0.9)
        needs = memory.needs_of(one, WIDTHS, 32, 10)
        learner = one.build_learner(WIDTHS, 32, 10)
        real = [*learner.sae.parameters(), *learner.sae.buffers()]
        assert needs.count == sum(p.numel() for p in learner.sae.parameters())
        assert needs.parameters == held(real)
        assert needs.average == held(learner.average.buffers())
        every = held(learner.parameters()) + held(learner.buffers())
        assert needs.counters == every - needs.parameters - needs.average


@pytest.mark.parametrize(
    ("rule", "site", "terms", "optim", "dtype"),
    [
        (RULES[0], 0, (), {}, "float32"),
        (RULES[0], 0, (), {"moments": "bfloat16"}, "float32"),
        (RULES[0], 0, (), {"name": "adamw"}, "bfloat16"),
        (RULES[0], 2, (), {}, "float32"),
        (RULES[0], 0, (), {"name": "signum"}, "float32"),
        (RULES[0], 0, (), {"name": "signum"}, "bfloat16"),
        (RULES[0], 0, (), {"name": "muon"}, "float32"),
        (RULES[6], 0, (), {}, "float32"),
        (RULES[8], 0, (), {}, "float32"),
        (RULES[8], 1, (), {}, "float32"),
        (RULES[0], 4, (), {}, "float32"),
        (RULES[0], 0, (losses.Matryoshka(),), {}, "float32"),
    ],
)
def test_optimiser_and_gradients_are_those_of_a_real_step(rule, site, terms, optim, dtype):
    one = recipe(rule, SITES[site], terms, optim=OptimConfig(**optim), dtype=dtype)
    needs = memory.needs_of(one, WIDTHS, 32, 10)
    learner = one.build_learner(WIDTHS, 32, 10)
    generator = torch.Generator().manual_seed(0)
    acts = {hook: torch.randn(32, width, generator=generator) for hook, width in WIDTHS.items()}
    learner.initialise(acts)
    gradients, step = [], learner.optimizer.step

    def watched():
        gradients.append(held(p.grad for p in learner.parameters() if p.grad is not None))
        return step()

    learner.optimizer.step = watched
    learner.step(acts)
    states = learner.optimizer.state.values()
    scalars = [t for state in states for t in state.values() if torch.is_tensor(t) and t.ndim]
    assert needs.optimiser == held(scalars)
    assert needs.gradients == gradients[0]


CONFIG = Path(__file__).parents[2] / "configs" / "worlds" / "superposition.yaml"
BASE = ["--config", str(CONFIG), "--trainer.accelerator", "cpu"]


def settings(count: int, *more: str) -> RunSettings:
    members = {f"m{n}": {"model.sae.k": n + 1} for n in range(count)}
    return parse_config([*BASE, *more, "--members", json.dumps(members)]).run


def test_waves_are_as_few_as_memory_allows_and_keep_the_order(monkeypatch):
    run = settings(7)
    names = list(run.members)
    run.data.source.setup("cpu")
    one = memory.needs_of(run.members["m0"], run.data.source.widths, 1024, 2000)
    shared = memory.shared_of(run, False).total
    largest = memory.needs_of(run.members["m6"], run.data.source.widths, 1024, 2000)
    room = (shared + 3 * one.kept + largest.passing + 1) / memory.GIB
    waves, says = memory.waves_for(run, room)
    assert waves == [names[:3], names[3:6], names[6:]]
    assert says.endswith("GiB are allowed: 3 waves of at most 3")
    assert says.startswith("7 members take about 0.")
    # Of what is free only a share is taken.
    monkeypatch.setattr(memory, "free_bytes", lambda device: room * memory.GIB / memory.SHARE)
    assert memory.waves_for(run, None)[0] == waves
    monkeypatch.setattr(memory, "free_bytes", lambda device: 64 * memory.GIB)
    assert memory.waves_for(run, None) == (
        [names],
        says.partition(",")[0] + ", 64.0 GiB are free: one wave",
    )


def test_what_does_not_fit_alone_is_refused():
    with pytest.raises(UserError, match=r"d_sae=3000000 of superposition takes .* 1 GiB"):
        run = parse_config([*BASE, "--model.sae.d_sae", "3000000"]).run
        memory.waves_for(run, 1)
    with pytest.raises(UserError, match=r"block_batches=9999: a block of 10,238,976 act"):
        memory.waves_for(settings(2, "--data.block_batches", "9999"), 1)


def test_free_memory_goes_by_the_limit_of_the_cgroup(tmp_path, monkeypatch):
    assert free_memory.free_bytes() > 0
    two, one, none = tmp_path / "v2", tmp_path / "v1", tmp_path / "none"
    for folder, files in (
        (two, {"memory.max": "1000", "memory.current": "700"}),
        (one, {"memory.limit_in_bytes": "2000", "memory.usage_in_bytes": "900"}),
        (none, {"memory.max": "max", "memory.current": "700"}),
    ):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text + "\n")
        (folder / "memory.stat").write_text("inactive_file 100\ntotal_inactive_file 50\n")
    assert free_memory._cgroup_room(two) == 400
    assert free_memory._cgroup_room(one) == 1150
    assert free_memory._cgroup_room(none) is None
    assert free_memory._cgroup_room(tmp_path / "nowhere") is None
    monkeypatch.setattr(free_memory, "_cgroups", lambda: [none, one, two])
    assert free_memory.free_bytes() == 400
