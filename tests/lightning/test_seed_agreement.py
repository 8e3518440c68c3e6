"""Members that differ only in their seed are compared during training and at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from sae import SAE
from sae.cli.fit import fit
from sae.evaluation.consensus import consensus
from sae.lightning import seed_agreement
from sae.lightning.seed_agreement import SeedAgreement, seed_groups
from sae.metrics.firing import Firing
from sae.metrics.seed_consistency import agreement, pw_mcc_signed, pw_mcc_signed_chance
from sae.training.member import Member
from tiny import read_metrics, run_settings, write_settings

STEPS, EVERY = 120, 40
SETTINGS = run_settings(
    {
        "name": "r",
        "model.sae.d_sae": 24,
        "model.sae.k": 2,
        "model.optim": {"lr": 1e-2, "warmup": 0.0},
        "data.source.n_features": 24,
        "data.source.mean_active": 1.5,
        "data.batch_size": 128,
        "data.held_out_tokens": 512,
        "trainer.max_steps": STEPS,
        "trainer.log_every_n_steps": EVERY,
        "trainer.val_check_interval": EVERY,
        "checkpoint_every": 50,
    }
)
MEMBERS = {
    "k=2,seed=0": {},
    "k=2,seed=1": {"model.seed": 1},
    "k=2,seed=2": {"model.seed": 2},
    "batch": {"model.sae": "BatchTopK", "model.seed": 5},
    "too": {"model.sae": "BatchTopK", "model.seed": 6},
}
SHORT = {**SETTINGS["trainer"], "max_steps": 8, "log_every_n_steps": 4, "val_check_interval": 4}
GROUPS = {"k=2": ["k=2,seed=0", "k=2,seed=1", "k=2,seed=2"], "batch": ["batch", "too"]}


def train(folder: Path, members: dict | None = None, *flags: str, **changes) -> Path:
    settings = {**SETTINGS, "members": members or MEMBERS, **changes}
    config = write_settings(folder, settings)
    assert fit(["--config", str(config), "--runs", str(folder), *flags]) == 0
    return folder / "r"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("seeds"))


def saved(run: Path, names: list[str]) -> list[SAE]:
    return [SAE.load(run / name / "sae") for name in names]


def test_agreement_is_written_at_every_validation(run):
    table = read_metrics(run)
    assert [int(row["step"]) for row in table] == list(range(EVERY, STEPS + 1, EVERY))
    for group, names in GROUPS.items():
        summary = json.loads((run / "summary.json").read_text())["seeds"][group]
        columns = {key for key in table[0] if key.startswith(f"{group}/")}
        deciles = {f"stability_decile_{n}" for n in range(1, 11)}
        others = {"pw_mcc_signed", "shared_fraction_signed"}
        levels = {"pw_mcc_signed_start", "pw_mcc_signed_chance"}
        assert columns == {f"{group}/{key}" for key in deciles | others | levels}
        # The last row is about the saved SAEs.
        trained = saved(run, names)
        densities = [Firing.load(run / name / "density.json").density() for name in names]
        W_dec, W_enc = [sae.W_dec for sae in trained], [sae.W_enc for sae in trained]
        expected, matching = agreement(W_dec, W_enc, densities)
        for key, value in expected.items():
            assert float(table[-1][f"{group}/{key}"]) == summary[key] == value
        for sae, stability in zip(trained, matching.stability(), strict=True):
            assert torch.equal(sae.stability, stability.float())
        # The two levels are those of the initial decoders and of random ones.
        configs = [yaml.safe_load((run / name / "config.yaml").read_text()) for name in names]
        starts = [SAE(16, trained[0].sparsity, seed=c["model"]["seed"] or 0).W_dec for c in configs]
        for row in table:
            assert float(row[f"{group}/pw_mcc_signed_start"]) == pw_mcc_signed(starts)
            assert float(row[f"{group}/pw_mcc_signed_chance"]) == pw_mcc_signed_chance(24, 16)
    first, last = (float(table[i]["k=2/pw_mcc_signed"]) for i in (0, -1))
    assert pw_mcc_signed_chance(24, 16) < first < last


def test_consensus_of_a_group_is_saved_and_measured(run):
    for group, names in GROUPS.items():
        results = json.loads((run / "summary.json").read_text())["seeds"][group]["consensus"]
        loaded, expected = SAE.load(run / "consensus" / group), consensus(saved(run, names))
        assert results["latents"] == loaded.d_sae == expected.d_sae
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name])
        assert loaded.metadata["consensus_of"] == names
        assert loaded.metadata["threshold"] == 0.7
        assert {"fvu", "l0", "dictionary_mcc_signed"} <= results["held_out"].keys()
        assert set(results["mmcs_of_latents"]) == {*names, "consensus"}
    # The latents on which seeds agree are nearer to true features than those of one SAE.
    precision = results["mmcs_of_latents"]
    assert precision["consensus"] > max(precision[name] for name in names) + 0.02


@pytest.mark.slow
def test_resumed_run_has_the_same_metrics_and_saes(run, tmp_path, capsys):
    again = tmp_path / "r"
    shutil.copytree(run, again)
    (again / "checkpoints" / f"step={STEPS}.ckpt").unlink()
    assert list((again / "checkpoints").iterdir())[0].name == "step=100.ckpt"
    (again / "summary.json").unlink()
    shutil.rmtree(again / "consensus")
    assert fit(["--resume", str(again)]) == 0
    assert (again / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    summary, resumed = (json.loads((r / "summary.json").read_text()) for r in (run, again))
    assert summary["seeds"] == resumed["seeds"]
    for file in run.rglob("*.safetensors"):
        assert file.read_bytes() == (again / file.relative_to(run)).read_bytes()
    printed = capsys.readouterr().out
    metrics = summary["seeds"]["k=2"]
    line = next(text for text in printed.splitlines() if text.startswith("│ k=2 "))
    for key in ("pw_mcc_signed", "pw_mcc_signed_start", "pw_mcc_signed_chance"):
        assert f"{metrics[key]:.3f}" in line
    assert f"{metrics['consensus']['latents']} latents" in line


@pytest.mark.slow
def test_groups_that_take_long_to_match_are_compared_only_at_the_end(tmp_path, capsys, monkeypatch):
    # Three pairs of seeds cost more than this, one pair does not.
    monkeypatch.setattr(seed_agreement, "MAX_MATCHING_COST", 24**3 * 3 - 1)
    run = train(tmp_path, trainer=SHORT)
    assert "k=2: 3 seeds of 24 latents are compared at the end only" in capsys.readouterr().out
    first, last = read_metrics(run)
    assert not first["k=2/pw_mcc_signed"] and first["batch/pw_mcc_signed"]
    trained = saved(run, GROUPS["k=2"])
    assert float(last["k=2/pw_mcc_signed"]) == pw_mcc_signed([sae.W_dec for sae in trained])
    starts = [SAE(16, trained[0].sparsity, seed=seed).W_dec for seed in (0, 1)]
    assert float(last["k=2/pw_mcc_signed_start"]) == pw_mcc_signed(starts)


@pytest.mark.slow
def test_groups_with_too_many_latents_are_not_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(seed_agreement, "MAX_LATENTS", 23)
    members = {name: MEMBERS[name] for name in GROUPS["k=2"][:2]}
    run = train(tmp_path, members, trainer=SHORT)
    assert "k=2: seeds are not compared: matching more than 23 lat" in capsys.readouterr().out
    assert not (run / "metrics.csv").exists() and not (run / "consensus").exists()


def test_stopped_members_are_left_out_of_their_group(tmp_path, monkeypatch):
    """One of three seeds and one of two are stopped: two seeds of the first group are compared."""
    pop_metrics = Member.pop_metrics

    def pop_and_stop(member: Member) -> dict[str, float]:
        row = pop_metrics(member)
        if member.name in ("c", "y"):
            member.stop("diverged")
        return row

    monkeypatch.setattr(Member, "pop_metrics", pop_and_stop)
    written, write = [], SeedAgreement.write

    def record(self, trainer, step, group, metrics):
        written.append((step, metrics))
        write(self, trainer, step, group, metrics)

    monkeypatch.setattr(SeedAgreement, "write", record)
    members = {name: {"model.seed": seed} for seed, name in enumerate("abc")}
    members |= {n: {"model.sae.k": 3, "model.seed": seed} for seed, n in enumerate("xy")}
    run = train(tmp_path, members, trainer=SHORT)
    assert {key.split("/")[0] for key in read_metrics(run)[0]} == {"step", "a"}
    results = json.loads((run / "summary.json").read_text())["seeds"]
    assert list(results) == ["a"] and results["a"]["members"] == ["a", "b"]
    expected, _ = agreement(
        [sae.W_dec for sae in saved(run, ["a", "b"])],
        [sae.W_enc for sae in saved(run, ["a", "b"])],
        [Firing.load(run / name / "density.json").density() for name in "ab"],
    )
    assert {key: results["a"][key] for key in expected} == expected
    # The last validation and the final comparison give the same metrics, deciles included.
    (first, _), *last = written
    assert first == 4 and last == [(8, expected)] * 2


def test_members_that_are_nan_but_not_yet_stopped_are_left_out(tmp_path, monkeypatch):
    finish_validation = Member.finish_validation

    def finish_and_spoil(member: Member) -> dict[str, float]:
        row = finish_validation(member)
        if member.name == "c":
            member.learner.sae.W_dec.data.fill_(float("nan"))
        return row

    monkeypatch.setattr(Member, "finish_validation", finish_and_spoil)
    run = train(tmp_path, {n: {"model.seed": s} for s, n in enumerate("abc")}, trainer=SHORT)
    assert [row["step"] for row in read_metrics(run)] == ["4", "8"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["seeds"]["a"]["members"] == ["a", "b"]
    assert summary["members"][2]["stopped"].startswith("diverged")


def test_without_groups_of_seeds_nothing_is_written(tmp_path):
    short = {**SETTINGS["trainer"], "max_steps": 2}
    run = train(tmp_path, {"a": {}, "b": {"model.sae.k": 3}}, trainer=short)
    assert not (run / "metrics.csv").exists() and not (run / "consensus").exists()
    assert "seeds" not in json.loads((run / "summary.json").read_text())
    assert SAE.load(run / "a" / "sae").stability is None


def test_state_key_is_the_one_in_saved_checkpoints(tmp_path):
    assert SeedAgreement({}, tmp_path).state_key == "AcrossSeeds"


def configs_of(*members: tuple[str, int | None, float]) -> dict[str, dict]:
    """Return the settings of members given as (name, seed, learning rate), in a run of seed 7."""
    return {
        name: {"seed": 7, "model": {"seed": seed, "optim": {"lr": lr}}}
        for name, seed, lr in members
    }


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("a", 0, 1.0), ("b", 0, 2.0)], {}),
        ([("a", 0, 1.0), ("b", 0, 1.0)], {}),  # the same seed twice
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
def test_groups_share_all_settings_but_the_seed(members, expected):
    assert seed_groups(configs_of(*members)) == expected
