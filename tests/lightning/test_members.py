"""Members of one run have the same bits as SAEs that are trained alone."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console

from sae import SAE, UserError
from sae.cli.fit import fit
from sae.lightning.callbacks import MembersTable
from sae.training import parallel_steps
from sae.training.member import Member
from tiny import assert_same_tensors, read_metrics, run_settings, write_settings

STEPS = 24
SETTINGS = run_settings(
    {
        "name": "r",
        "model.dead_after": 400,
        "model.refresh_steps": 4,
        "model.optim": {"lr": 3e-3, "warmup": 0.0},
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 12,
        "checkpoint_every": 9,
    }
)
MEMBERS = {
    "plain": {},
    "wide": {"model.sae.d_sae": 100, "model.optim.lr": 1e-3},
    "k=8": {"model.sae.k": 8, "model.resample_every": 6, "model.dead_after": 65},
    "seed=1": {"model.seed": 1},
    "batch": {"model.sae": "BatchTopK", "model.ema": 0.9},
    "jump": {
        "model.sae": "JumpReLU",
        "model.losses": [
            "FVU",
            {"class_path": "L0", "init_args": {"target_l0": 4.0}},
        ],
        "model.optim.name": "signum",
    },
    "coding": {"model.sparse_coding": {"iterations": 5}, "model.dtype": "float32"},
}
TOO_FAST = {"model.optim.lr": 1e12, "model.optim.unit_norm": False}


def write(folder: Path, **changes) -> Path:
    return write_settings(folder, {**SETTINGS, **changes})


def assert_same_bits(one: Path, other: Path) -> None:
    """Check that two members, or runs, have the same SAEs and metrics to the last bit."""
    assert read_metrics(one) == read_metrics(other)
    folders = [path.name for path in one.glob("sae*")]
    assert "sae" in folders and folders == [path.name for path in other.glob("sae*")]
    for folder in folders:
        assert_same_tensors(*(SAE.load(path / folder) for path in (one, other)))
    a, b = (json.loads((path / "summary.json").read_text()) for path in (one, other))
    assert a["held_out"] == b["held_out"] and a["steps"] == b["steps"] == STEPS


@pytest.fixture(scope="module")
def run_of_all(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("members")
    config = write(folder, members=MEMBERS)
    assert fit(["--config", str(config), "--runs", str(folder)]) == 0
    return folder / "r"


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_has_the_bits_of_a_run_of_its_own(run_of_all, tmp_path, name):
    """The run leaves a config for each member, which trains it alone."""
    assert fit(["--config", str(run_of_all / name / "config.yaml"), "--runs", str(tmp_path)]) == 0
    assert_same_bits(run_of_all / name, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 5])
def test_members_in_parallel_threads_have_the_same_bits(run_of_all, tmp_path, threads, monkeypatch):
    torch.set_num_threads(threads)
    monkeypatch.setattr(
        parallel_steps, "MIN_MULTIPLY_ADDS", 0
    )  # in parallel even if they are small
    config = write(tmp_path, members=MEMBERS)
    assert fit(["--config", str(config), "--runs", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    for name in MEMBERS:
        assert_same_bits(run_of_all / name, tmp_path / "r" / name)


def test_members_differ(run_of_all):
    last_rows = {tuple(read_metrics(run_of_all / name)[-1].items()) for name in MEMBERS}
    assert len(last_rows) == len(MEMBERS)


def test_a_diverged_member_stops_and_does_not_change_the_others(run_of_all, tmp_path, capsys):
    config = write(tmp_path, members={"diverging": TOO_FAST, **MEMBERS})
    assert fit(["--config", str(config), "--runs", str(tmp_path)]) == 0
    for name in MEMBERS:
        assert_same_bits(run_of_all / name, tmp_path / "r" / name)
    summary = json.loads((tmp_path / "r" / "diverging" / "summary.json").read_text())
    assert summary["stopped"].startswith("diverged") and summary["steps"] < STEPS
    assert not (tmp_path / "r" / "diverging" / "sae").exists()
    assert "diverged" in capsys.readouterr().out

    # The run can be resumed from the checkpoint before the last, in which the member had stopped.
    again = tmp_path / "again" / "r"
    shutil.copytree(tmp_path / "r", again)
    (again / "checkpoints" / f"step={STEPS}.ckpt").unlink()
    assert fit(["--resume", str(again)]) == 0
    for name in MEMBERS:
        assert_same_bits(run_of_all / name, again / name)
    assert (
        json.loads((again / "diverging" / "summary.json").read_text())["steps"] == summary["steps"]
    )
    assert read_metrics(again / "diverging") == read_metrics(tmp_path / "r" / "diverging")


def test_a_diverged_single_member_ends_the_run(tmp_path):
    config = write(tmp_path)
    flags = [f"--{key}={value}" for key, value in TOO_FAST.items()]
    with pytest.raises(UserError, match=r"diverged.*step 4, with lr=1e\+12; .* lower"):
        fit(["--config", str(config), "--runs", str(tmp_path), *flags])


def test_resume_is_exact_for_every_member(run_of_all, tmp_path):
    again = tmp_path / "r"
    shutil.copytree(run_of_all, again)
    (again / "checkpoints" / f"step={STEPS}.ckpt").unlink()
    for name in MEMBERS:
        (again / name / "summary.json").unlink()
    assert fit(["--resume", str(again)]) == 0
    for name in MEMBERS:
        assert_same_bits(run_of_all / name, again / name)


def test_resume_refuses_another_list_of_members(run_of_all, tmp_path):
    again = tmp_path / "r"
    shutil.copytree(run_of_all, again)
    with pytest.raises(UserError, match="its members are plain, wide.*not plain"):
        fit(["--resume", str(again), "--members", '{"plain": {}}'])


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "members is empty"),
        ({"a/b": {}}, "'a/b' cannot be the name of a folder"),
        ({"checkpoints": {}}, "'checkpoints' cannot be"),
        ({"consensus": {}}, "'consensus' cannot be"),
        ({"a": {"data.batch_size": 3}}, "members.a: data.batch_size is the same for all"),
        ({"a": {"model.accumulate": 2}}, "members.a: model.accumulate is the same for all"),
        ({"a": {"model.sae.q": 3}}, "members.a: model.sae.q is not a setting"),
        ({"a": {"model.sae.k": 0}}, "k=0"),
        ({"a": {"model.sae.k": "x"}}, "members.a: model.sae.k=x is of the wrong kind"),
        (
            {"a": {}, "b": {"model.losses": ["EndToEnd"]}},
            "members differ in EndToEnd",
        ),
    ],
)
def test_wrong_member_settings_are_refused(tmp_path, members, words):
    config = write(tmp_path, members=members)
    with pytest.raises(UserError) as error:
        fit(["--config", str(config), "--runs", str(tmp_path)])
    assert words in error.value.message
    assert not (tmp_path / "r" / "summary.json").exists()


@pytest.mark.slow
def test_members_may_differ_in_site_and_hooks(tmp_path, write_config):
    """The activations are those of a tiny language model."""
    hooks = ["layers.0.mlp.in", "layers.0.mlp", "layers.1"]
    members = {
        "residual": {"model.site": "Autoencoder", "model.site.hook": hooks[2]},
        "transcoder": {
            "model.site": {"class_path": "Transcoder", "init_args": {"read": hooks[0]}},
            "model.site.predict": hooks[1],
        },
        "cross": {"model.site": {"class_path": "Crosscoder", "init_args": {"read": hooks[1:]}}},
    }
    config = yaml.safe_load(write_config(tmp_path, family="llama").read_text())
    config["data"]["source"]["init_args"]["hooks"] = hooks
    config["trainer"]["max_steps"] = STEPS
    file = write_settings(tmp_path, {**config, "name": "r", "members": members})
    assert fit(["--config", str(file), "--runs", str(tmp_path)]) == 0
    for name in members:
        config_flag = ["--config", str(tmp_path / "r" / name / "config.yaml")]
        assert fit([*config_flag, "--runs", str(tmp_path / "alone")]) == 0
        assert_same_bits(tmp_path / "r" / name, tmp_path / "alone" / name)
        files = {file.name for file in (tmp_path / "alone" / name).iterdir()}
        assert files - {file.name for file in (tmp_path / "r" / name).iterdir()} == {"checkpoints"}


def test_terminal_table_has_a_row_for_each_member_and_says_why_one_stopped():
    row = {"fvu": 0.25, "l0": 4.0, "dead_fraction": 0.125}
    member = lambda **values: SimpleNamespace(
        **{"live": True, "last_metrics": {}, "held_out": {}, "stopped": None, **values}
    )
    module = SimpleNamespace(
        steps=10,
        seconds=5.0,
        members=[
            member(name="good", last_metrics=row, held_out={"held_out_fvu": 0.5}),
            member(name="fresh"),
            member(
                name="bad", live=False, last_metrics=row, stopped={"reason": "diverged: FVU nan"}
            ),
        ],
    )
    console = Console(file=io.StringIO(), width=100)
    console.print(MembersTable().table(30, module))
    text = console.file.getvalue()
    assert "step 10 of 30, 10 s left" in text and "bad: diverged: FVU nan" in text
    cells = lambda line: [cell.strip() for cell in line.split("│")[1:-1]]
    rows = {cells(line)[0]: cells(line)[1:] for line in text.splitlines() if "│" in line}
    assert rows["good"] == ["0.2500", "0.5000", "4.0", "12.50%"]
    assert rows["fresh"] == ["", "", "", ""]


@pytest.mark.parametrize(
    ("fvus", "stops"),
    [
        ([143.0, 300.0, 0.5], None),  # a large FVU at the start is not a divergence
        ([0.5, 99.0, 0.5], None),
        ([0.5, 101.0], 1),
        ([143.0, 1431.0], 1),
        ([0.5, float("nan")], 1),
        ([float("inf")], 0),
    ],
)
def test_divergence_needs_a_large_fvu_that_grew(tmp_path, fvus, stops):
    member = Member("m", None, tmp_path)
    metrics = iter([{"fvu": fvu, "loss": fvu} for fvu in fvus])
    member.learner = FakeLearner(lambda: next(metrics))
    for number in range(len(fvus)):
        member.pop_metrics()
        assert member.live == (number != stops), number


class FakeLearner(torch.nn.Module):
    """A learner with given metrics."""

    def __init__(self, pop_metrics) -> None:
        super().__init__()
        self.pop_metrics, self.steps, self.tokens = pop_metrics, 1, 64
