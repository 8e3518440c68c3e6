"""The memory of a run before it is built, and the packing of members into waves."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import sae.autoencoder.losses as losses
from sae.autoencoder.sites import Crosscoder, CrossLayerTranscoder
from sae.cli.config import parse_config
from sae.errors import UserError
from sae.planner import memory, system
from sae.training import OptimConfig
from sae.training.run_settings import RunSettings
from sae.training.train_config import TrainConfig
from tiny import all_rules, all_sites, tiny_rule

WIDTHS = {"a": 16, "b": 16, "c": 24}
RULES = all_rules(60, k=4)
RULES["Unrolled-untied"] = tiny_rule("Unrolled", 60, tied=False, layers=3)
SITES = all_sites(("a", "b"), ("c", "a"))
SITES["Crosscoder"] = Crosscoder()
SITES["CrossLayerTranscoder"] = CrossLayerTranscoder(read=("a", "b"), predict=("b", "a"))


def make_config(rule, site=None, terms=(), **changes):
    terms = [losses.FVU(), *terms]
    if rule.needs_penalty:
        terms.append(losses.L1(coefficient=0.1))
    return TrainConfig(rule, site or SITES["Autoencoder"], terms, **changes)


def bytes_of(tensors) -> int:
    return sum(t.numel() * t.itemsize for t in tensors)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_estimate_equals_the_tensors_of_the_real_learner(rule):
    for site, dtype in itertools.product(SITES.values(), ("float32", "bfloat16")):
        config = make_config(rule, site, dtype=dtype, ema=0.9)
        estimate = memory.estimate_memory(config, WIDTHS, 32, 10)
        learner = config.build_learner(WIDTHS, 32, 10)
        real = [*learner.sae.parameters(), *learner.sae.buffers()]
        assert estimate.parameter_count == sum(p.numel() for p in learner.sae.parameters())
        assert estimate.parameters == bytes_of(real)
        assert estimate.average == bytes_of(learner.average.buffers())
        every = bytes_of(learner.parameters()) + bytes_of(learner.buffers())
        assert estimate.counters == every - estimate.parameters - estimate.average


@pytest.mark.parametrize(
    ("rule", "site", "terms", "optim", "dtype"),
    [
        ("TopK", "Autoencoder", (), {}, "float32"),
        ("TopK", "Autoencoder", (), {"moments": "bfloat16"}, "float32"),
        ("TopK", "Autoencoder", (), {"name": "adamw"}, "bfloat16"),
        ("TopK", "SkipTranscoder", (), {}, "float32"),
        ("TopK", "Autoencoder", (), {"name": "signum"}, "float32"),
        ("TopK", "Autoencoder", (), {"name": "signum"}, "bfloat16"),
        ("TopK", "Autoencoder", (), {"name": "muon"}, "float32"),
        ("JumpReLU", "Autoencoder", (), {}, "float32"),
        ("Unrolled", "Autoencoder", (), {}, "float32"),
        ("Unrolled", "Transcoder", (), {}, "float32"),
        ("TopK", "CrossLayerTranscoder", (), {}, "float32"),
        ("TopK", "Autoencoder", (losses.Matryoshka(),), {}, "float32"),
    ],
)
def test_estimate_equals_optimizer_state_and_gradients_of_a_real_step(
    rule, site, terms, optim, dtype
):
    config = make_config(RULES[rule], SITES[site], terms, optim=OptimConfig(**optim), dtype=dtype)
    estimate = memory.estimate_memory(config, WIDTHS, 32, 10)
    learner = config.build_learner(WIDTHS, 32, 10)
    generator = torch.Generator().manual_seed(0)
    acts = {hook: torch.randn(32, width, generator=generator) for hook, width in WIDTHS.items()}
    learner.initialise(acts)
    gradients, step = [], learner.optimizer.step

    def recording_step():
        gradients.append(bytes_of(p.grad for p in learner.parameters() if p.grad is not None))
        return step()

    learner.optimizer.step = recording_step
    learner.step(acts)
    states = learner.optimizer.state.values()
    scalars = [t for state in states for t in state.values() if torch.is_tensor(t) and t.ndim]
    assert estimate.optimizer == bytes_of(scalars)
    assert estimate.gradients == gradients[0]


CONFIG = Path(__file__).parents[2] / "configs" / "worlds" / "superposition.yaml"
BASE = ["--config", str(CONFIG), "--trainer.accelerator", "cpu"]


def settings(count: int, *flags: str) -> RunSettings:
    members = {f"m{n}": {"model.sae.k": n + 1} for n in range(count)}
    return parse_config([*BASE, *flags, "--members", json.dumps(members)]).run


def test_waves_fill_the_allowed_memory_in_the_order_of_members(monkeypatch):
    run = settings(7)
    names = list(run.members)
    run.data.source.setup("cpu")
    one = memory.estimate_memory(run.members["m0"], run.data.source.widths, 1024, 2000)
    shared = memory.shared_memory(run, False).total
    largest = memory.estimate_memory(run.members["m6"], run.data.source.widths, 1024, 2000)
    allowed = (shared + 3 * one.persistent + largest.temporary + 1) / memory.GIB
    waves, line = memory.pack_waves(run, allowed)
    assert waves == [names[:3], names[3:6], names[6:]]
    assert line.endswith("GiB are allowed: 3 waves of at most 3")
    assert line.startswith("7 members take about 0.")
    # Only a share of the free memory is used.
    monkeypatch.setattr(
        memory, "free_bytes", lambda device: allowed * memory.GIB / memory.DEFAULT_SHARE
    )
    assert memory.pack_waves(run, None)[0] == waves
    monkeypatch.setattr(memory, "free_bytes", lambda device: 64 * memory.GIB)
    assert memory.pack_waves(run, None) == (
        [names],
        line.partition(",")[0] + ", 64.0 GiB are free: one wave",
    )


def test_a_member_that_does_not_fit_alone_is_refused():
    with pytest.raises(UserError, match=r"d_sae=3000000 of superposition takes .* 1 GiB"):
        run = parse_config([*BASE, "--model.sae.d_sae", "3000000"]).run
        memory.pack_waves(run, 1)
    with pytest.raises(UserError, match=r"block_batches=9999: a block of 10,238,976 act"):
        memory.pack_waves(settings(2, "--data.block_batches", "9999"), 1)


def test_free_memory_respects_the_cgroup_limit(tmp_path, monkeypatch):
    assert system.free_bytes() > 0
    v2, v1, unlimited = tmp_path / "v2", tmp_path / "v1", tmp_path / "none"
    for folder, files in (
        (v2, {"memory.max": "1000", "memory.current": "700"}),
        (v1, {"memory.limit_in_bytes": "2000", "memory.usage_in_bytes": "900"}),
        (unlimited, {"memory.max": "max", "memory.current": "700"}),
    ):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text + "\n")
        (folder / "memory.stat").write_text("inactive_file 100\ntotal_inactive_file 50\n")
    assert system._cgroup_free(v2) == 400
    assert system._cgroup_free(v1) == 1150
    assert system._cgroup_free(unlimited) is None
    assert system._cgroup_free(tmp_path / "nowhere") is None
    monkeypatch.setattr(system, "_cgroups", lambda: [unlimited, v1, v2])
    assert system.free_bytes() == 400
