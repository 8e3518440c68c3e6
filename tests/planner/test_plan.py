"""`plan`: what it counts by hand, what it times against a run, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from sae.autoencoder.losses import FVU, L1
from sae.autoencoder.sites import Autoencoder, CrossLayerTranscoder
from sae.autoencoder.sparsity import ReLU, TopK, Unrolled
from sae.cli.config import parse_config
from sae.cli.main import main
from sae.planner import cost_model as costs
from sae.planner import estimate, memory
from sae.planner.pilot import Pilot
from sae.training import OptimConfig
from sae.training.train_config import TrainConfig
from sae.worlds import SparseSuperposition

ROOT = Path(__file__).parents[2]
WORLD = ["--config", str(ROOT / "configs/worlds/superposition.yaml"), "--trainer.accelerator=cpu"]
SMALL = [
    *WORLD,
    *("--data.batch_size", "256", "--data.block_batches", "4", "--data.held_out_tokens", "512"),
    *("--trainer.max_steps", "40", "--trainer.val_check_interval", "20"),
    *("--checkpoint_every", "15"),
]
MEMBERS = {"few": {"model.sae.k": 2}, "wide": {"model.sae.d_sae": 512}}


def work_of(recipe: TrainConfig, widths: dict[str, int], batch_size: int) -> dict[str, costs.Work]:
    shape = (widths, batch_size, 10)
    needs = memory.needs_of(recipe, *shape)
    return costs.step_work(recipe, memory.shape_of(recipe, *shape), needs, batch_size)


def test_flops_and_bytes_of_a_step_by_hand():
    work = work_of(TrainConfig(TopK(d_sae=60, k=3), Autoencoder(hook="a"), [FVU()]), {"a": 10}, 8)
    slots, params = 8 * 3, 2 * 60 * 10 + 60 + 10
    assert work["encode"] == costs.Work(2 * 8 * 60 * 10, 4 * 600 + 4 * 80 + 12 * slots)
    assert work["decode"] == costs.Work(2 * slots * 10, slots * 40 + 2 * 4 * 80 + 12 * slots)
    biases = 4 * (60 + 10)  # the only gradients that a step makes whole
    rows = slots * 40 + 2 * 4 * 80 + 32 * slots
    assert work["backward"] == costs.Work(2 * slots * 30, rows + 2 * biases)
    assert work["update"] == costs.Work(14 * params, 2 * 3 * 4 * params)


def test_a_row_of_weights_comes_from_memory_once_however_often_it_fires():
    work = work_of(TrainConfig(TopK(d_sae=60, k=30), Autoencoder(hook="a"), [FVU()]), {"a": 10}, 8)
    assert work["decode"].bytes == 60 * 40 + 2 * 4 * 80 + 12 * 240


def test_flops_follow_rule_site_batch_and_optimiser():
    widths = {"a": 10, "b": 10}
    rule, site = TopK(d_sae=60, k=3), Autoencoder(hook="a")
    plain = work_of(TrainConfig(rule, site, [FVU()]), widths, 8)
    twice = work_of(TrainConfig(rule, site, [FVU()], accumulate=2), widths, 8)
    assert twice["encode"].flops == 2 * plain["encode"].flops
    terms = [FVU(), L1(coefficient=0.1)]
    unrolled = work_of(TrainConfig(Unrolled(d_sae=60, layers=2), site, terms), widths, 8)
    assert unrolled["encode"].flops == 5 * plain["encode"].flops
    half = work_of(TrainConfig(ReLU(d_sae=60), site, terms), widths, 8)
    assert half["decode"].flops == 10 * plain["decode"].flops  # 30 latents in place of 3
    layers = CrossLayerTranscoder(read=("a", "b"), predict=("a", "b"))
    cross = work_of(TrainConfig(TopK(d_sae=60, k=4), layers, [FVU()]), widths, 8)
    assert cross["encode"].flops == plain["encode"].flops  # a latent reads one layer
    optim = OptimConfig(moments="bfloat16")
    small = work_of(TrainConfig(rule, site, [FVU()], optim), widths, 8)
    assert small["update"].bytes == plain["update"].bytes * 2 / 3


def test_a_gpu_is_bound_by_products_or_by_memory():
    gpu = costs.GPU(bf16=4, tf32=2, fp32=1, bandwidth=2, memory=1)
    assert costs.Work(8e12, 4e12).seconds(gpu, "bf16") == 2
    assert costs.Work(8e12, 4e12).seconds(gpu, "tf32") == 4
    assert costs.Work(8e12, 40e12).seconds(gpu, "fp32") == 20


# A child's peak begins at what its parent had in memory, so the parent is a small one.
PARENT = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def run(args: list[str]) -> tuple[float, float]:
    """Wall seconds and peak MiB of a process."""
    start = time.perf_counter()
    command = [sys.executable, "-c", PARENT, sys.executable, "train.py", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start, int(done.stdout) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_a_real_run_takes_about_what_was_planned(tmp_path):
    figures = tmp_path / "plan.json"
    args = [*SMALL, "--runs", str(tmp_path / "runs"), "--members", json.dumps(MEMBERS)]
    run(["plan", *args, "--json", str(figures)])
    assert list(tmp_path.iterdir()) == [figures]  # it starts nothing, and leaves nothing
    planned = json.loads(figures.read_text())
    seconds, peak = run(["fit", *args])
    assert planned["peak_bytes"] / 2**20 == pytest.approx(peak, rel=0.25)
    assert 1 / 3 < planned["seconds"] / seconds < 3  # other work may begin or end in between
    assert planned["seconds"] == pytest.approx(sum(planned["seconds_by_part"].values()))
    assert planned["peak_bytes"] == sum(planned["memory_bytes"].values())
    counts = {"few": 2 * 64 * 256 + 256 + 64, "wide": 2 * 64 * 512 + 512 + 64}
    assert {n: m["parameters"] for n, m in planned["members"].items()} == counts
    assert planned["parameters"] == sum(counts.values())
    assert planned["tokens"] == 40 * 256


def test_time_is_steps_blocks_checks_and_checkpoints_of_all_members(monkeypatch):
    """With a pilot that measures one second of everything, by hand."""
    settings = parse_config([*SMALL, "--members", json.dumps(MEMBERS)]).run
    one = estimate.Timed(1, 1, 1, 1, 1)
    monkeypatch.setattr(Pilot, "member", lambda self, recipe: one)
    monkeypatch.setattr(Pilot, "time", lambda self, call: call() or 4 * self.count / 4)
    monkeypatch.setattr(estimate, "age_seconds", lambda: 7.0)
    seconds = estimate.planned(settings).seconds
    assert seconds == {
        "start": 7.0,
        "harvest": 40 + 2,  # 10 blocks of 4 batches, a second each, and 512 held out
        "steps": pytest.approx(2 * 40 + 40 * estimate.CALL_SECONDS),
        "validation": 2 * 2,
        "checkpoints": 2 * 3,
        "figures, examples and page": 2 * (1 + estimate.REPORT_SECONDS),
    }


def test_shapes_are_timed_once_and_a_rate_is_no_shape(monkeypatch):
    members = {"slow": {"model.optim.lr": 1e-5}, "other": {"model.seed": 3}, **MEMBERS}
    settings = parse_config([*SMALL, "--members", json.dumps(members)]).run
    timed = []
    monkeypatch.setattr(
        Pilot, "_measured", lambda self, recipe: timed.append(recipe.sparsity) or len(timed)
    )
    pilot = Pilot(settings)
    found = [pilot.member(recipe) for recipe in settings.members.values()]
    assert found == [1, 1, 2, 3]
    assert [(rule.d_sae, rule.k) for rule in timed] == [(256, 6), (256, 2), (512, 6)]


def test_a_pilot_measures_both_parts_of_sparse_coding():
    more = ["--model.sparse_coding.iterations", "3", "--trainer.max_steps", "40"]
    pilot = Pilot(parse_config([*SMALL, *more]).run)
    timed = pilot.member(next(iter(pilot.settings.members.values())))
    assert all(seconds > 0 for seconds in asdict(timed).values())
    assert timed.first != timed.step


def test_a_line_through_two_points_goes_on(monkeypatch):
    pilot = Pilot.__new__(Pilot)
    monkeypatch.setattr(Pilot, "time", lambda self, call: call())
    assert pilot._line(lambda n: 1.0 + n, 8192) == 8193
    assert pilot._line(lambda n: 1.0 + n, 100) == 101
    assert pilot._line(lambda n: 5.0, 8192) == 5.0 * 1.5  # noise: half of the share at the least


def test_a_named_gpu_is_a_floor(capsys, tmp_path):
    file = tmp_path / "p.json"
    assert main(["plan", *SMALL, "--gpu", "H100", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "a floor by H100's data sheet, and unmeasured" in said
    figures = json.loads(file.read_text())
    (member,) = figures["members"].values()
    floor = sum(max(w["flops"] / 494e12, w["bytes"] / 3.35e12) for w in member["step"].values())
    assert figures["seconds_by_part"]["steps"] == pytest.approx(40 * floor)
    assert figures["gpu"] == "H100"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--gpu", "abacus"], "--gpu abacus is not known; choose among: h100, h200"),
        (["--json", "/nowhere/p.json"], "--json /nowhere/p.json: there is no folder /nowhere"),
        (["--trainer.max_steps", "0"], "trainer.max_steps=0; give the length"),
        (["--model.sae.k", "0"], "model.sae.k=0"),
        (["--gpu"], "--gpu needs a value"),
    ],
)
def test_bad_input_is_one_line(capsys, flags, says):
    assert main(["plan", *SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_sweep_in_waves_harvests_for_each(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Pilot, "member", lambda self, recipe: estimate.Timed(1, 1, 1, 1, 1))
    monkeypatch.setattr(Pilot, "time", lambda self, call: call() or float(self.count))
    settings = parse_config([*SMALL, "--model.sae.k", "4"]).run
    shape = {"world": 64}, 256, 40
    one = memory.needs_of(settings.members["superposition"], *shape)
    three = memory.shared_of(settings, False).total + 3 * one.kept + one.passing
    found = []
    for memory_flags in ([], ["--memory", str((three + 1) / memory.GIB)]):
        file = tmp_path / "p.json"
        flags = ["--grid", "model.sae.k=2,4", "--seeds", "2", *memory_flags, "--json", str(file)]
        assert main(["plan", *SMALL, *flags]) == 0
        found.append(json.loads(file.read_text()))
    said = capsys.readouterr().out
    assert "are free: one wave" in said
    assert "GiB are allowed: 2 waves of at most 3" in said
    one, two = found
    assert list(one["members"]) == list(two["members"])
    assert list(one["members"]) == ["k=2,seed=0", "k=2,seed=1", "k=4,seed=0", "k=4,seed=1"]
    seconds = [f["seconds_by_part"] for f in found]
    assert seconds[1]["harvest"] == 2 * seconds[0]["harvest"] == 84
    assert seconds[0]["validation"] == seconds[1]["validation"]
    assert two["memory_bytes"]["parameters"] == one["memory_bytes"]["parameters"] * 3 / 4


def test_a_run_is_not_planned_twice(capsys):
    assert main(["plan", "--resume", "runs/x"]) == 2
    assert "plan is for a run that has not started" in capsys.readouterr().err


def test_harvest_counts_the_models_products():
    class Model:
        model = torch.nn.Linear(8, 8)

    class OnText:
        model = Model

        def text_model(self):
            return self

    world = SparseSuperposition(8, 16, 2)
    assert costs.harvest_work(world) == costs.Work(0, 0)
    assert estimate._model_bytes(world) == 0
    assert estimate._model_bytes(OnText()) == 4 * (64 + 8)
