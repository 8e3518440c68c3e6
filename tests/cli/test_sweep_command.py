"""The command `sweep`: its results, resumes, waves, early stopping and errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sae import SAE
from sae.browser.sweep_page import write_sweep_report
from sae.cli.config import parse_config
from sae.cli.fit import fit
from sae.cli.main import main
from sae.planner.memory import GIB, estimate_memory, shared_memory
from sae.sweep import grid
from sae.sweep.results import SweepResults
from tiny import read_metrics, run_settings, write_settings

REPO = Path(__file__).resolve().parent.parent.parent
STEPS = 48
SETTINGS = run_settings(
    {
        "name": "r",
        "data.held_out_tokens": 512,
        "trainer.max_steps": STEPS,
        "trainer.log_every_n_steps": 6,
        "trainer.val_check_interval": 12,
        # Checkpoints and validations fall on the same steps; there the checkpoint comes first.
        "checkpoint_every": 6,
    }
)
GRID = ["--grid", "model.sae.k=2,4", "--grid", "model.optim.lr=3e-3,1e-2", "--seeds", "2"]


def swept(folder: Path, *more: str) -> Path:
    args = [
        "sweep",
        "--config",
        str(write_settings(folder, SETTINGS)),
        "--runs",
        str(folder),
        *GRID,
        *more,
    ]
    assert main(args) == 0
    return folder / "r-sweep"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    return swept(tmp_path_factory.mktemp("sweep"))


def test_sweep_writes_table_page_plots_and_best_configs(done):
    names = {file.name for file in done.iterdir()}
    pictures = {"fvu_over_l0.png", "downstream_over_l0.png", "settings.png"}
    best = {"best.yaml", "best-l0-2.yaml", "best-l0-4.yaml"}
    assert names == pictures | best | {
        "config.yaml",
        "sweep.json",
        "sweep.csv",
        "sweep.html",
        "seeds.json",
        "wave-1",
    }
    for picture in pictures:
        assert (done / picture).read_bytes()[:4] == b"\x89PNG"
        assert (done / picture).stat().st_size > 10_000
    table = SweepResults.read(done)
    assert len(table.members) == 8 == len(table.finished)
    assert table.keys == ["model.sae.k", "model.optim.lr", "model.seed"]
    assert table.members[0].name == "k=2,lr=0.003,seed=0"
    for member in table.members:
        summary = json.loads((done / member.folder / "summary.json").read_text())
        assert member.fvu == summary["held_out"]["fvu"]
        assert member.settings["model.sae.k"] == SAE.load(done / member.folder / "sae").sparsity.k
    assert list(table.seed_groups) == ["k=2,lr=0.003", "k=2,lr=0.01", "k=4,lr=0.003", "k=4,lr=0.01"]
    for group in table.seed_groups.values():
        assert group["pw_mcc_signed"] > group["pw_mcc_signed_start"]
    page = (done / "sweep.html").read_text()
    assert "Agreement between seeds" in page and "wave-1/consensus/k=4,lr=0.01" in page
    assert page.count("<svg") == 4 and all(member.name in page for member in table.members)


def test_best_config_repeats_its_member_exactly(done, tmp_path):
    groups = SweepResults.read(done).best()
    assert [round(some[0].l0) for some in groups] == [2, 4]
    for some, file in zip(groups, ("best-l0-2.yaml", "best-l0-4.yaml"), strict=True):
        lowest = min(
            SweepResults.read(done).combinations(),
            key=lambda c: abs(c[0].l0 - some[0].l0) * 100 + c[0].fvu + c[1].fvu,
        )
        assert some == lowest
        assert fit(["--config", str(done / file), "--runs", str(tmp_path)]) == 0
        name = f"r-sweep-{file.removesuffix('.yaml')}"
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["held_out"]["fvu"] == some[0].fvu
    best = yaml.safe_load((done / "best.yaml").read_text())
    assert best["model"]["sae"]["init_args"]["k"] == 4 and best["runs"] == str(done.parent)


@pytest.mark.slow
def test_killed_and_resumed_sweep_writes_the_same_table(done, tmp_path):
    """Kill a process with SIGKILL at an arbitrary step."""
    config = write_settings(tmp_path, SETTINGS)
    command = [sys.executable, str(REPO / "train.py"), "sweep"]
    args = ["--config", str(config), "--runs", str(tmp_path), *GRID]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *args], env=env, stdout=subprocess.DEVNULL)
    folder = tmp_path / "r-sweep"
    try:
        deadline = time.monotonic() + 200
        while not list(folder.glob("wave-1/checkpoints/step=1*.ckpt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL and not (folder / "sweep.csv").exists()
    assert main(["sweep", "--resume", str(folder)]) == 0
    assert (folder / "sweep.csv").read_bytes() == (done / "sweep.csv").read_bytes()
    assert (folder / "sweep.html").read_text().replace(str(tmp_path), "") == (
        done / "sweep.html"
    ).read_text().replace(str(done.parent), "")


@pytest.mark.slow
def test_packing_into_waves_does_not_change_results(done, tmp_path):
    """Members are independent, so packing changes only their folders."""
    settings = parse_config(["--config", str(write_settings(tmp_path, SETTINGS))]).run
    (recipe,), data = settings.members.values(), settings.data
    data.source.setup()
    estimate = estimate_memory(recipe, data.source.widths, data.batch_size, STEPS)
    room = shared_memory(settings, False).total + 3.5 * estimate.persistent + estimate.temporary
    folder = swept(tmp_path, "--memory", str(room / GIB))
    waves = json.loads((folder / "sweep.json").read_text())["waves"]
    assert [len(wave) for wave in waves] == [3, 3, 2]
    names = [member.name for member in SweepResults.read(done).members]
    assert [name for wave in waves for name in wave] == names
    for one, other in zip(
        SweepResults.read(done).members, SweepResults.read(folder).members, strict=True
    ):
        assert one.metrics == other.metrics


@pytest.mark.slow
def test_stop_early_stops_the_worse_half_and_resumes_the_same(done, tmp_path, capsys):
    folder = swept(tmp_path, "--stop-early")
    assert "stopped early" in capsys.readouterr().out
    full, halved = SweepResults.read(done), SweepResults.read(folder)
    first = {}  # at the first rung, step 12, by mean over seeds
    for member in full.members:
        row = next(row for row in read_metrics(done / member.folder) if row["step"] == "12")
        key = (member.settings["model.sae.k"], member.settings["model.optim.lr"])
        first[key] = first.get(key, 0.0) + float(row["held_out_fvu"])
    for one, other in zip(full.members, halved.members, strict=True):
        k, lr = one.settings["model.sae.k"], one.settings["model.optim.lr"]
        better = first[k, lr] == min(first[k, some] for some in (3e-3, 1e-2))
        assert bool(other.stopped) != better
        if better:
            assert one.metrics == other.metrics
        else:
            assert other.metrics["steps"] == 12 and "held_out_fvu" not in other.metrics

    # A kill between the checkpoint of the rung's step and its validation.
    again = tmp_path / "again" / "r-sweep"
    shutil.copytree(folder, again)
    wave = again / "wave-1"
    (wave / "summary.json").unlink()
    for file in (wave / "checkpoints").iterdir():
        file.unlink()
    shutil.copy(_checkpoint_of_step_12(tmp_path), wave / "checkpoints")
    assert main(["sweep", "--resume", str(again)]) == 0
    assert (again / "sweep.csv").read_bytes() == (folder / "sweep.csv").read_bytes()


def _checkpoint_of_step_12(tmp_path: Path) -> Path:
    """Return the checkpoint of step 12 of another sweep."""
    folder = tmp_path / "short"
    config = write_settings(folder, SETTINGS)
    args = ["sweep", "--config", str(config), "--runs", str(folder), *GRID, "--stop-early"]
    kept = folder / "step=12.ckpt"
    from sae.lightning.checkpoint_io import SafeCheckpointIO

    saved = SafeCheckpointIO.save_checkpoint

    def save(self, checkpoint, path, storage_options=None):
        saved(self, checkpoint, path, storage_options)
        if Path(path).name == kept.name:
            shutil.copy(path, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafeCheckpointIO, "save_checkpoint", save)
        assert main(args) == 0
    return kept


def test_an_existing_sweep_is_not_overwritten(done, capsys):
    args = ["--config", str(done / "config.yaml"), "--runs", str(done.parent), "--name", done.name]
    assert main(["sweep", *args, *GRID]) == 2
    assert "exists already; continue it with `sweep --resume" in capsys.readouterr().err


def test_member_names_are_escaped_on_the_page(done, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(done, folder)
    spec = json.loads((folder / "sweep.json").read_text())
    text = (folder / "sweep.csv").read_text()
    bad = "<script>alert(1)</script>"
    old = next(iter(spec["waves"][0]))
    spec["waves"] = [{bad if n == old else n: c for n, c in spec["waves"][0].items()}]
    (folder / "sweep.json").write_text(json.dumps(spec))
    (folder / "sweep.csv").write_text(text.replace(f'"{old}",', f'"{bad}",', 1))
    write_sweep_report(folder, {})
    page = (folder / "sweep.html").read_text()
    assert bad not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "sweep needs --grid KEY=V1,V2,..., or --seeds N"),
        (["--grid", "model.sae.k"], "--grid model.sae.k; give KEY=V1,V2,..."),
        (["--grid", "model.sae.k=1,,2"], "--grid model.sae.k=1,,2; give KEY="),
        (["--grid", "model.sae.k=1,1"], "has a value twice"),
        (["--grid", "model.sae.k=1", "--grid", "model.sae.k=2"], "is given twice"),
        (
            ["--grid", "data.batch_size=1,2"],
            "--grid data.batch_size: members of a sweep train on one",
        ),
        (["--grid", "model.sae.q=1,2"], "members.q=1: model.sae.q is not a setting"),
        (["--grid", "model.sae.k=1,x"], "model.sae.k=x is of the wrong kind"),
        (["--grid", "model.sae.k=[1"], "not valid YAML"),
        (["--seeds", "0"], "--seeds 0; give at least 1"),
        (["--seeds", "x"], "--seeds"),
        (["--seeds", "2", "--grid", "model.seed=1,2"], "mutually exclusive"),
        (["--seeds", "2", "--members", '{"a": {}}'], "sweep makes its own members"),
        (["--seeds", "2", "--trainer.max_steps", "0"], "trainer.max_steps=0"),
        (["--resume", "nowhere"], "--resume nowhere: no sweep.json there"),
    ],
)
def test_bad_input_gives_a_one_line_error(tmp_path, capsys, flags, words):
    config = ["--config", str(write_settings(tmp_path, SETTINGS)), "--runs", str(tmp_path)]
    assert main(["sweep", *([] if "--resume" in flags else config), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_grid_flags_become_named_members():
    axes = grid.parse_axes(
        ["model.sae.k=16,32", "model.losses=[FVU],[FVU, AuxK]"], seeds=2, first=5
    )
    assert axes == {
        "model.sae.k": [16, 32],
        "model.losses": [["FVU"], ["FVU", "AuxK"]],
        "model.seed": [5, 6],
    }
    members = grid.expand_members(axes)
    assert len(members) == 8 and list(members)[:2] == ["member-0", "member-1"]
    assert members["member-3"] == {
        "model.sae.k": 16,
        "model.losses": ["FVU", "AuxK"],
        "model.seed": 6,
    }
    assert grid.parse_axes(["model.optim.lr=1e-4,0.5"])["model.optim.lr"] == [1e-4, 0.5]
    assert list(
        grid.expand_members(grid.parse_axes(["model.sae.d_sae=8", "model.optim.lr=1e-4"]))
    ) == ["d_sae=8,lr=0.0001"]
    names = grid.expand_members({"model.a.k": [1], "model.b.k": [2]})
    assert list(names) == ["a.k=1,b.k=2"]


def test_random_draws_combinations_with_all_their_seeds():
    axes = grid.parse_axes(["model.sae.k=1,2,3,4,5", "model.optim.lr=1,2,3"], seeds=2)
    drawn = grid.expand_members(axes, at_random=4, seed=1)
    assert len(drawn) == 8 and drawn == grid.expand_members(axes, at_random=4, seed=1)
    assert drawn != grid.expand_members(axes, at_random=4, seed=2)
    assert set(drawn) < set(grid.expand_members(axes))
    assert {changes["model.seed"] for changes in drawn.values()} == {0, 1}
    assert len(grid.expand_members(axes, at_random=99)) == 30
