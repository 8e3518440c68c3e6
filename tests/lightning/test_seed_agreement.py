"""Members that differ in their seed only: compared while they learn, and at the end."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from sae import SAE
from sae.cli.fit import fit
from sae.evaluation.consensus import consensus
from sae.lightning import seed_agreement as seeds
from sae.metrics.firing import Firing
from sae.metrics.seed_consistency import agreement, pw_mcc_signed, pw_mcc_signed_chance
from sae.training.member import Member

STEPS, EVERY = 120, 40
SETTINGS = {
    "name": "r",
    "model": {
        "sae": {"class_path": "TopK", "init_args": {"d_sae": 24, "k": 2}},
        "optim": {"lr": 1e-2, "warmup": 0.0},
    },
    "data": {
        "source": {
            "class_path": "SparseSuperposition",
            "init_args": {"d_in": 16, "n_features": 24, "mean_active": 1.5},
        },
        "batch_size": 128,
        "block_batches": 4,
        "held_out_tokens": 512,
    },
    "trainer": {
        "max_steps": STEPS,
        "log_every_n_steps": EVERY,
        "val_check_interval": EVERY,
        "accelerator": "cpu",
    },
    "checkpoint_every": 50,
}
MEMBERS = {
    "k=2,seed=0": {},
    "k=2,seed=1": {"model.seed": 1},
    "k=2,seed=2": {"model.seed": 2},
    "batch": {"model.sae": "BatchTopK", "model.seed": 5},
    "too": {"model.sae": "BatchTopK", "model.seed": 6},
}
GROUPS = {"k=2": ["k=2,seed=0", "k=2,seed=1", "k=2,seed=2"], "batch": ["batch", "too"]}


def train(folder: Path, members: dict | None = None, *flags: str, **changes) -> Path:
    settings = {**SETTINGS, "members": members or MEMBERS, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "c.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert fit(["--config", str(folder / "c.yaml"), "--runs", str(folder), *flags]) == 0
    return folder / "r"


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("seeds"))


def saved(run: Path, names: list[str]) -> list[SAE]:
    return [SAE.load(run / name / "sae") for name in names]


def test_live_figures_at_every_validation(run):
    table = rows(run)
    assert [int(row["step"]) for row in table] == list(range(EVERY, STEPS + 1, EVERY))
    for group, names in GROUPS.items():
        figures = json.loads((run / "summary.json").read_text())["seeds"][group]
        columns = {key for key in table[0] if key.startswith(f"{group}/")}
        deciles = {f"stability_decile_{n}" for n in range(1, 11)}
        others = {"pw_mcc_signed", "shared_fraction_signed"}
        levels = {"pw_mcc_signed_start", "pw_mcc_signed_chance"}
        assert columns == {f"{group}/{key}" for key in deciles | others | levels}
        # The last row is of what was saved.
        trained = saved(run, names)
        firing = [Firing.load(run / name / "density.json").density() for name in names]
        W_dec, W_enc = [sae.W_dec for sae in trained], [sae.W_enc for sae in trained]
        expected, matching = agreement(W_dec, W_enc, firing)
        for key, value in expected.items():
            assert float(table[-1][f"{group}/{key}"]) == figures[key] == value
        for sae, stability in zip(trained, matching.stability(), strict=True):
            assert torch.equal(sae.stability, stability.float())
        # The levels beside it, of the decoders as they start and of random ones.
        own = [yaml.safe_load((run / name / "config.yaml").read_text()) for name in names]
        starts = [SAE(16, trained[0].sparsity, seed=c["model"]["seed"] or 0).W_dec for c in own]
        for row in table:
            assert float(row[f"{group}/pw_mcc_signed_start"]) == pw_mcc_signed(starts)
            assert float(row[f"{group}/pw_mcc_signed_chance"]) == pw_mcc_signed_chance(24, 16)
    first, last = (float(table[i]["k=2/pw_mcc_signed"]) for i in (0, -1))
    assert pw_mcc_signed_chance(24, 16) < first < last


def test_consensus_of_a_group(run):
    for group, names in GROUPS.items():
        of = json.loads((run / "summary.json").read_text())["seeds"][group]["consensus"]
        agreed, again = SAE.load(run / "consensus" / group), consensus(saved(run, names))
        assert of["latents"] == agreed.d_sae == again.d_sae
        for name, tensor in agreed.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name])
        assert agreed.metadata["consensus_of"] == names
        assert agreed.metadata["threshold"] == 0.7
        assert {"fvu", "l0", "dictionary_mcc_signed"} <= of["held_out"].keys()
        assert set(of["mmcs_of_latents"]) == {*names, "consensus"}
    # What seeds agree on is what there is: its latents are nearer to true features.
    precision = of["mmcs_of_latents"]
    assert precision["consensus"] > max(precision[name] for name in names) + 0.02


def test_resume_is_exact(run, tmp_path, capsys):
    again = tmp_path / "r"
    shutil.copytree(run, again)
    (again / "checkpoints" / f"step={STEPS}.ckpt").unlink()
    assert list((again / "checkpoints").iterdir())[0].name == "step=100.ckpt"
    (again / "summary.json").unlink()
    shutil.rmtree(again / "consensus")
    assert fit(["--resume", str(again)]) == 0
    assert (again / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    one, other = (json.loads((r / "summary.json").read_text()) for r in (run, again))
    assert one["seeds"] == other["seeds"]
    for file in run.rglob("*.safetensors"):
        assert file.read_bytes() == (again / file.relative_to(run)).read_bytes()
    printed = capsys.readouterr().out
    figures = one["seeds"]["k=2"]
    line = next(text for text in printed.splitlines() if text.startswith("│ k=2 "))
    for key in ("pw_mcc_signed", "pw_mcc_signed_start", "pw_mcc_signed_chance"):
        assert f"{figures[key]:.3f}" in line
    assert f"{figures['consensus']['latents']} latents" in line


def test_where_matching_takes_long_once_at_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(seeds, "LIVE", 24**3 * 3 - 1)  # three pairs are too many, one is not
    short = {**SETTINGS["trainer"], "max_steps": 8, "log_every_n_steps": 4, "val_check_interval": 4}
    wide = train(tmp_path, trainer=short)
    assert "k=2: 3 seeds of 24 latents are compared at the end only" in capsys.readouterr().out
    first, last = rows(wide)
    assert not first["k=2/pw_mcc_signed"] and first["batch/pw_mcc_signed"]
    trained = saved(wide, GROUPS["k=2"])
    assert float(last["k=2/pw_mcc_signed"]) == pw_mcc_signed([sae.W_dec for sae in trained])
    starts = [SAE(16, trained[0].sparsity, seed=seed).W_dec for seed in (0, 1)]
    assert float(last["k=2/pw_mcc_signed_start"]) == pw_mcc_signed(starts)

    monkeypatch.setattr(seeds, "MOST", 23)
    some = {name: MEMBERS[name] for name in GROUPS["k=2"][:2]}
    wider = train(tmp_path / "wider", some, trainer=short)
    assert "k=2: no comparison of seeds: matching more than 23 lat" in capsys.readouterr().out
    assert not (wider / "metrics.csv").exists() and not (wider / "consensus").exists()


def test_who_was_stopped_is_left_out(tmp_path, monkeypatch):
    """Two seeds of three go on and are compared; of two, one goes on, with nobody left."""
    read = Member.read

    def stopping(member: Member) -> dict[str, float]:
        row = read(member)
        if member.name in ("c", "y"):
            member.stop("diverged")
        return row

    monkeypatch.setattr(Member, "read", stopping)
    written, write = [], seeds.AcrossSeeds.write

    def writing(self, trainer, step, group, figures):
        written.append((step, figures))
        write(self, trainer, step, group, figures)

    monkeypatch.setattr(seeds.AcrossSeeds, "write", writing)
    short = {**SETTINGS["trainer"], "max_steps": 8, "log_every_n_steps": 4, "val_check_interval": 4}
    members = {name: {"model.seed": seed} for seed, name in enumerate("abc")}
    members |= {n: {"model.sae.k": 3, "model.seed": seed} for seed, n in enumerate("xy")}
    run = train(tmp_path, members, trainer=short)
    assert {key.split("/")[0] for key in rows(run)[0]} == {"step", "a"}
    found = json.loads((run / "summary.json").read_text())["seeds"]
    assert list(found) == ["a"] and found["a"]["members"] == ["a", "b"]
    figures, _ = agreement(
        [sae.W_dec for sae in saved(run, ["a", "b"])],
        [sae.W_enc for sae in saved(run, ["a", "b"])],
        [Firing.load(run / name / "density.json").density() for name in "ab"],
    )
    assert {key: found["a"][key] for key in figures} == figures
    # What was said live of the last step is the same, deciles included.
    (first, _), *last = written
    assert first == 4 and last == [(8, figures)] * 2


def test_what_is_no_number_is_left_out_before_it_is_stopped(tmp_path, monkeypatch):
    judged = Member.judged

    def spoiled(member: Member) -> dict[str, float]:
        row = judged(member)
        if member.name == "c":
            member.learner.sae.W_dec.data.fill_(float("nan"))
        return row

    monkeypatch.setattr(Member, "judged", spoiled)
    short = {**SETTINGS["trainer"], "max_steps": 8, "log_every_n_steps": 4, "val_check_interval": 4}
    run = train(tmp_path, {n: {"model.seed": s} for s, n in enumerate("abc")}, trainer=short)
    assert [row["step"] for row in rows(run)] == ["4", "8"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seeds"]["a"]["members"] == ["a", "b"]
    assert summary["members"][2]["stopped"].startswith("diverged")


def test_without_seeds_that_differ_nothing_is_written(tmp_path):
    short = {**SETTINGS["trainer"], "max_steps": 2}
    run = train(tmp_path, {"a": {}, "b": {"model.sae.k": 3}}, trainer=short)
    assert not (run / "metrics.csv").exists() and not (run / "consensus").exists()
    assert "seeds" not in json.loads((run / "summary.json").read_text())
    assert SAE.load(run / "a" / "sae").stability is None


def alone(*members: tuple[str, int | None, float]) -> dict[str, dict]:
    return {
        name: {"seed": 7, "model": {"seed": seed, "optim": {"lr": lr}}}
        for name, seed, lr in members
    }


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("a", 0, 1.0), ("b", 0, 2.0)], {}),
        ([("a", 0, 1.0), ("b", 0, 1.0)], {}),  # one and the same
        ([("a", 7, 1.0), ("b", None, 1.0)], {}),  # the run's seed is 7
        ([("a", 6, 1.0), ("b", None, 1.0)], {"a": ["a", "b"]}),
        ([("seed=0", 0, 1.0), ("seed=1", 1, 1.0)], {"seeds": ["seed=0", "seed=1"]}),
        (
            [("lr=1,seed=0,k=2", 0, 1.0), ("lr=1,seed=1,k=2", 1, 1.0), ("z", 1, 2.0)],
            {"lr=1,k=2": ["lr=1,seed=0,k=2", "lr=1,seed=1,k=2"]},
        ),
        (
            [(f"x,seed={seed}", seed, seed // 2) for seed in range(4)],
            {"x": ["x,seed=0", "x,seed=1"], "x,seed=2": ["x,seed=2", "x,seed=3"]},
        ),
    ],
)
def test_groups(members, expected):
    assert seeds.groups(alone(*members)) == expected
