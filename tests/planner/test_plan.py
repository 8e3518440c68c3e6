"""The command `plan`: its counts, its times compared with a run, and its errors."""

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
from sae.planner import cost_model, estimate, memory
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


def work_of(
    recipe: TrainConfig, widths: dict[str, int], batch_size: int
) -> dict[str, cost_model.Work]:
    shape = (widths, batch_size, 10)
    estimated = memory.estimate_memory(recipe, *shape)
    return cost_model.step_work(recipe, memory.fake_learner(recipe, *shape), estimated, batch_size)


def test_flops_and_bytes_of_a_step_equal_hand_counts():
    work = work_of(TrainConfig(TopK(d_sae=60, k=3), Autoencoder(hook="a"), [FVU()]), {"a": 10}, 8)
    slots, params = 8 * 3, 2 * 60 * 10 + 60 + 10
    assert work["encode"] == cost_model.Work(2 * 8 * 60 * 10, 4 * 600 + 4 * 80 + 12 * slots)
    assert work["decode"] == cost_model.Work(2 * slots * 10, slots * 40 + 2 * 4 * 80 + 12 * slots)
    biases = 4 * (60 + 10)  # the only dense gradients of a step
    rows = slots * 40 + 2 * 4 * 80 + 32 * slots
    assert work["backward"] == cost_model.Work(2 * slots * 30, rows + 2 * biases)
    assert work["update"] == cost_model.Work(14 * params, 2 * 3 * 4 * params)


def test_a_row_of_weights_is_read_once_however_often_its_latent_fires():
    work = work_of(TrainConfig(TopK(d_sae=60, k=30), Autoencoder(hook="a"), [FVU()]), {"a": 10}, 8)
    assert work["decode"].bytes == 60 * 40 + 2 * 4 * 80 + 12 * 240


def test_flops_depend_on_rule_site_batch_and_optimizer():
    widths = {"a": 10, "b": 10}
    rule, site = TopK(d_sae=60, k=3), Autoencoder(hook="a")
    plain = work_of(TrainConfig(rule, site, [FVU()]), widths, 8)
    twice = work_of(TrainConfig(rule, site, [FVU()], accumulate=2), widths, 8)
    assert twice["encode"].flops == 2 * plain["encode"].flops
    terms = [FVU(), L1(coefficient=0.1)]
    unrolled = work_of(TrainConfig(Unrolled(d_sae=60, layers=2), site, terms), widths, 8)
    assert unrolled["encode"].flops == 5 * plain["encode"].flops
    half = work_of(TrainConfig(ReLU(d_sae=60), site, terms), widths, 8)
    assert half["decode"].flops == 10 * plain["decode"].flops  # 30 latents instead of 3
    layers = CrossLayerTranscoder(read=("a", "b"), predict=("a", "b"))
    cross = work_of(TrainConfig(TopK(d_sae=60, k=4), layers, [FVU()]), widths, 8)
    assert cross["encode"].flops == plain["encode"].flops  # a latent reads one layer
    optim = OptimConfig(moments="bfloat16")
    small = work_of(TrainConfig(rule, site, [FVU()], optim), widths, 8)
    assert small["update"].bytes == plain["update"].bytes * 2 / 3


def test_gpu_time_is_the_longer_of_arithmetic_and_traffic():
    gpu = cost_model.GPU(bf16=4, tf32=2, fp32=1, bandwidth=2, memory=1)
    assert cost_model.Work(8e12, 4e12).seconds(gpu, "bf16") == 2
    assert cost_model.Work(8e12, 4e12).seconds(gpu, "tf32") == 4
    assert cost_model.Work(8e12, 40e12).seconds(gpu, "fp32") == 20


# The peak of a child process starts at the memory of its parent, so a small parent starts it.
PARENT = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def run(args: list[str]) -> tuple[float, float]:
    """Return wall seconds and peak MiB of a process."""
    start = time.perf_counter()
    command = [sys.executable, "-c", PARENT, sys.executable, "train.py", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start, int(done.stdout) / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_plan_predicts_memory_and_time_of_a_real_run(tmp_path):
    # Other work on the machine may start or end between the plan and the run, so the time has three
    # attempts to agree. All other numbers must agree at the first.
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        plan_file = folder / "plan.json"
        args = [*SMALL, "--runs", str(folder / "runs"), "--members", json.dumps(MEMBERS)]
        run(["plan", *args, "--json", str(plan_file)])
        assert list(folder.iterdir()) == [plan_file]  # it starts nothing, and leaves nothing
        planned = json.loads(plan_file.read_text())
        seconds, peak = run(["fit", *args])
        assert planned["peak_bytes"] / 2**20 == pytest.approx(peak, rel=0.25)
        ratio = planned["seconds"] / seconds
        if 1 / 3 < ratio < 3:
            break
    assert 1 / 3 < ratio < 3
    assert planned["seconds"] == pytest.approx(sum(planned["seconds_by_part"].values()))
    assert planned["peak_bytes"] == sum(planned["memory_bytes"].values())
    counts = {"few": 2 * 64 * 256 + 256 + 64, "wide": 2 * 64 * 512 + 512 + 64}
    assert {n: m["parameters"] for n, m in planned["members"].items()} == counts
    assert planned["parameters"] == sum(counts.values())
    assert planned["tokens"] == 40 * 256


def test_time_sums_the_parts_of_all_members(monkeypatch):
    """Use a pilot that measures one second for everything."""
    settings = parse_config([*SMALL, "--members", json.dumps(MEMBERS)]).run
    times = estimate.MemberTimes(1, 1, 1, 1, 1)
    monkeypatch.setattr(Pilot, "measure", lambda self, config: times)
    monkeypatch.setattr(Pilot, "time", lambda self, call: call() or 4 * self.count / 4)
    monkeypatch.setattr(estimate, "age_seconds", lambda: 7.0)
    seconds = estimate.make_plan(settings).seconds
    assert seconds == {
        "start": 7.0,
        "harvest": 40 + 2,  # 10 blocks of 4 batches, a second each, and 512 held out
        "steps": pytest.approx(2 * 40 + 40 * estimate.CALL_SECONDS),
        "validation": 2 * 2,
        "checkpoints": 2 * 3,
        "metrics, examples and page": 2 * (1 + estimate.REPORT_SECONDS),
    }


def test_each_shape_is_timed_once_whatever_its_learning_rate(monkeypatch):
    members = {"slow": {"model.optim.lr": 1e-5}, "other": {"model.seed": 3}, **MEMBERS}
    settings = parse_config([*SMALL, "--members", json.dumps(members)]).run
    measured = []
    monkeypatch.setattr(
        Pilot,
        "_measure_shape",
        lambda self, config: measured.append(config.sparsity) or len(measured),
    )
    pilot = Pilot(settings)
    times = [pilot.measure(config) for config in settings.members.values()]
    assert times == [1, 1, 2, 3]
    assert [(rule.d_sae, rule.k) for rule in measured] == [(256, 6), (256, 2), (512, 6)]


def test_pilot_times_both_phases_of_sparse_coding():
    flags = ["--model.sparse_coding.iterations", "3", "--trainer.max_steps", "40"]
    pilot = Pilot(parse_config([*SMALL, *flags]).run)
    times = pilot.measure(next(iter(pilot.settings.members.values())))
    assert all(seconds > 0 for seconds in asdict(times).values())
    assert times.first_step != times.step


def test_pilot_extrapolates_linearly(monkeypatch):
    pilot = Pilot.__new__(Pilot)
    monkeypatch.setattr(Pilot, "time", lambda self, call: call())
    assert pilot._extrapolate(lambda n: 1.0 + n, 8192) == 8193
    assert pilot._extrapolate(lambda n: 1.0 + n, 100) == 101
    assert (
        pilot._extrapolate(lambda n: 5.0, 8192) == 5.0 * 1.5
    )  # with noise, at least half of the proportional slope


def test_gpu_plan_is_a_lower_bound_from_the_data_sheet(capsys, tmp_path):
    file = tmp_path / "p.json"
    assert main(["plan", *SMALL, "--gpu", "H100", "--json", str(file)]) == 0
    output = capsys.readouterr().out
    assert "lower bounds from the data sheet of H100, not measured" in output
    figures = json.loads(file.read_text())
    (member,) = figures["members"].values()
    bound = sum(max(w["flops"] / 494e12, w["bytes"] / 3.35e12) for w in member["step"].values())
    assert figures["seconds_by_part"]["steps"] == pytest.approx(40 * bound)
    assert figures["gpu"] == "H100"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu", "abacus"], "--gpu abacus is not known; choose among: h100, h200"),
        (["--json", "/nowhere/p.json"], "--json /nowhere/p.json: there is no folder /nowhere"),
        (["--trainer.max_steps", "0"], "trainer.max_steps=0; give the length"),
        (["--model.sae.k", "0"], "model.sae.k=0"),
        (["--gpu"], "--gpu needs a value"),
    ],
)
def test_bad_input_gives_a_one_line_error(capsys, flags, message):
    assert main(["plan", *SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_wave_of_a_sweep_harvests_again(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Pilot, "measure", lambda self, config: estimate.MemberTimes(1, 1, 1, 1, 1))
    monkeypatch.setattr(Pilot, "time", lambda self, call: call() or float(self.count))
    settings = parse_config([*SMALL, "--model.sae.k", "4"]).run
    shape = {"world": 64}, 256, 40
    one = memory.estimate_memory(settings.members["superposition"], *shape)
    three = memory.shared_memory(settings, False).total + 3 * one.persistent + one.temporary
    found = []
    for memory_flags in ([], ["--memory", str((three + 1) / memory.GIB)]):
        file = tmp_path / "p.json"
        flags = ["--grid", "model.sae.k=2,4", "--seeds", "2", *memory_flags, "--json", str(file)]
        assert main(["plan", *SMALL, *flags]) == 0
        found.append(json.loads(file.read_text()))
    output = capsys.readouterr().out
    assert "are free: one wave" in output
    assert "GiB are allowed: 2 waves of at most 3" in output
    one, two = found
    assert list(one["members"]) == list(two["members"])
    assert list(one["members"]) == ["k=2,seed=0", "k=2,seed=1", "k=4,seed=0", "k=4,seed=1"]
    seconds = [f["seconds_by_part"] for f in found]
    assert seconds[1]["harvest"] == 2 * seconds[0]["harvest"] == 84
    assert seconds[0]["validation"] == seconds[1]["validation"]
    assert two["memory_bytes"]["parameters"] == one["memory_bytes"]["parameters"] * 3 / 4


def test_plan_refuses_to_resume_a_run(capsys):
    assert main(["plan", "--resume", "runs/x"]) == 2
    assert "plan is for a run that has not started" in capsys.readouterr().err


def test_harvest_counts_the_products_of_the_model():
    class Model:
        model = torch.nn.Linear(8, 8)

    class OnText:
        model = Model

        def text_model(self):
            return self

    world = SparseSuperposition(8, 16, 2)
    assert cost_model.harvest_work(world) == cost_model.Work(0, 0)
    assert estimate._model_bytes(world) == 0
    assert estimate._model_bytes(OnText()) == 4 * (64 + 8)
