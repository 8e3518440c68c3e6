"""`sae.train`: one SAE or several, from tensors, worlds and models; resumed to the same bits."""

from __future__ import annotations

import inspect
import json
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger

import sae
from sae.api.arguments import TrainArguments
from sae.cli.main import main
from sae.worlds import SparseSuperposition

SMALL = {
    "steps": 24,
    "batch_size": 64,
    "block_batches": 4,
    "held_out_tokens": 256,
    "checkpoint_every": 9,
    "accelerator": "cpu",
    "progress": False,
}
RULE = sae.TopK(d_sae=64, k=4)


@pytest.fixture(autouse=True)
def in_tmp_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(3000, 48, generator=generator).sub(0.9).relu()
    return codes @ torch.randn(48, 16, generator=generator)


def same_tensors(one: sae.SAE, other: sae.SAE) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def forget_last_checkpoint(folder: Path) -> None:
    """Leave a run as if it had been killed after step 18."""
    (folder / "checkpoints/step=24.ckpt").unlink()
    (folder / "summary.json").unlink()
    assert [f.name for f in (folder / "checkpoints").iterdir()] == ["step=18.ckpt"]


def test_a_run_has_its_sae_metrics_history_folder_and_page(x, monkeypatch):
    run = sae.train(activations=x, sae=RULE, **SMALL)
    assert run.folder == Path("runs/run-1") and run.name == "run-1"
    assert run.sae(x[:5]).shape == (5, 16) and run.sae.sparsity == RULE
    assert run.metrics == json.loads((run.folder / "summary.json").read_text())
    assert run.metrics["steps"] == 24 and run.metrics["held_out"]["fvu"] < 0.8
    assert run.history[-1]["step"] == 24 and run.history[-1]["fvu"] < run.history[0]["fvu"]
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run.browse() == (run.folder / "report.html").resolve()
    assert opened == [(run.folder / "report.html").resolve().as_uri()]
    assert "TopK" in repr(run) and "FVU" in repr(run)
    assert repr(sae.Run(run.folder)) == repr(run)


def test_the_same_call_gives_the_same_bits_and_another_seed_others(x):
    one, other = (sae.train(activations=x, sae=RULE, **SMALL) for _ in range(2))
    assert one.folder != other.folder and same_tensors(one.sae, other.sae)
    assert not same_tensors(one.sae, sae.train(activations=x, sae=RULE, seed=1, **SMALL).sae)


def test_several_saes_are_the_ones_that_separate_calls_train(x):
    rules = [sae.TopK(d_sae=64, k=4), sae.BatchTopK(d_sae=32, k=2)]
    runs = sae.train(activations=x, sae=rules, **SMALL)
    assert len(runs) == 2 and runs.names == ["0-TopK", "1-BatchTopK"]
    assert [run.sae.sparsity for run in runs] == rules
    for run, rule in zip(runs, rules, strict=True):
        assert same_tensors(run.sae, sae.train(activations=x, sae=rule, **SMALL).sae)
    assert [m["name"] for m in runs.metrics["members"]] == runs.names


def test_a_dict_names_members_and_may_change_their_arguments(x):
    runs = sae.train(
        activations=x, sae={"low": {"sae": RULE, "lr": 1e-4}, "high": RULE}, lr=1e-2, **SMALL
    )
    low, high = runs
    assert (low.metrics["learning_rate"], high.metrics["learning_rate"]) == (1e-4, 1e-2)
    assert runs["low"] is low
    with pytest.raises(sae.UserError, match=r"sae\['a'\] has batch_size"):
        sae.train(activations=x, sae={"a": {"sae": RULE, "batch_size": 3}}, **SMALL)


WAYS = {
    "tensor": lambda x: x,
    "several hooks": lambda x: {"a": x, "b": x.flip(1)},
    "list": lambda x: list(x.split(200)),
    "function": lambda x: lambda: iter(x.split(77)),
}


@pytest.mark.parametrize("way", WAYS)
def test_in_memory_activations_resume_to_the_same_bits(way, x):
    arguments = {"sae": RULE, "name": "a", **SMALL}
    if way == "several hooks":
        arguments["site"] = sae.Transcoder(read="a", predict="b")
    data = WAYS[way](x)
    run = sae.train(activations=data, **arguments)
    trained, held_out, rows = run.sae, run.metrics["held_out"], len(run.history)
    forget_last_checkpoint(run.folder)
    again = sae.train(activations=data, resume=True, **arguments)
    assert same_tensors(trained, again.sae)
    assert again.metrics["held_out"] == held_out and len(again.history) == rows


def test_resume_from_the_command_line_says_to_use_python(x, capsys):
    run = sae.train(activations=x, sae=RULE, name="mine", **SMALL)
    config = (run.folder / "config.yaml").read_text()
    assert config.startswith("# The settings in python_only are Python objects")
    assert yaml.safe_load(config)["python_only"].keys() == {"data.source"}
    assert main(["fit", "--resume", str(run.folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "call sae.train(..., resume=True)" in error


@pytest.mark.parametrize("several", [False, True])
def test_what_yaml_can_name_resumes_from_the_command_line(several):
    rules = [sae.TopK(d_sae=64, k=4), sae.JumpReLU(d_sae=32)] if several else RULE
    losses = [sae.FVU(), sae.L0(target_l0=4.0)] if several else None
    source = SparseSuperposition(d_in=16, n_features=64, mean_active=3.0)
    if several:
        rules = {"a": {"sae": rules[0], "losses": None}, "b": rules[1]}
    run = sae.train(source=source, sae=rules, losses=losses, name="a", **SMALL)
    shutil.copytree("runs/a", "runs/b")
    forget_last_checkpoint(Path("runs/b"))
    assert main(["fit", "--resume", "runs/b"]) == 0
    pairs = [(r, sae.Run(Path("runs/b") / r.name)) for r in run] if several else []
    for one, other in pairs or [(run, sae.Run("runs/b"))]:
        assert same_tensors(one.sae, other.sae)


def test_resume_refuses_other_settings_and_other_data(x):
    sae.train(activations=x, sae=RULE, name="a", **SMALL)
    arguments = {"name": "a", "resume": True, **SMALL}
    with pytest.raises(sae.UserError, match="k=8 differs from 4 of the run to resume"):
        sae.train(activations=x, sae=sae.TopK(d_sae=64, k=8), **arguments)
    with pytest.raises(sae.UserError, match="activations differ from those"):
        sae.train(activations=x + 1, sae=RULE, **arguments)


def test_resume_starts_a_run_that_has_no_checkpoint(x):
    assert sae.train(activations=x, sae=RULE, name="a", resume=True, **SMALL).metrics["steps"] == 24
    with pytest.raises(sae.UserError, match="resume=True needs name="):
        sae.train(activations=x, sae=RULE, resume=True, **SMALL)


def test_a_taken_name_is_refused_unless_overwritten(x):
    sae.train(activations=x, sae=RULE, name="a", **SMALL)
    with pytest.raises(sae.UserError, match="another name=, or pass overwrite=True"):
        sae.train(activations=x, sae=RULE, name="a", **SMALL)
    sae.train(activations=x, sae=RULE, name="a", overwrite=True, **SMALL)


class Stopper(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        if pl_module.steps == 10:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_says_how_to_continue_and_continues(x):
    straight = sae.train(activations=x, sae=RULE, **SMALL)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 11 of 24.*resume=True"):
        sae.train(activations=x, sae=RULE, name="a", callbacks=[Stopper()], **SMALL)
    run = sae.train(activations=x, sae=RULE, name="a", resume=True, **SMALL)
    assert same_tensors(run.sae, straight.sae)


def test_loggers_and_callbacks_are_called(x):
    class Rows(DummyLogger):
        rows: list[int] = []

        def log_metrics(self, metrics, step):
            self.rows.append(step)

    class Batches(Callback):
        seen = 0

        def on_train_batch_end(self, *args) -> None:
            self.seen += 1

    logger, batches = Rows(), Batches()
    sae.train(activations=x, sae=RULE, logger=logger, callbacks=[batches], **SMALL)
    assert batches.seen == 24 and logger.rows[-1] == 24


@pytest.mark.parametrize("way", ["file", "documents", "paths"])
def test_a_model_reads_text_from_files_and_lists(way, tiny_folders, tmp_path):
    from tiny_models import some_documents

    documents = some_documents(60)
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    text = {"file": "a.txt", "documents": documents, "paths": [tmp_path / "a.txt"]}[way]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = sae.train(
            model=str(tiny_folders["bert"]),
            hooks="layers.1",
            text=text,
            context_size=32,
            sae=RULE,
            **SMALL,
        )
    assert run.metrics["held_out"]["fvu"] < 1
    assert (run.folder / "examples.jsonl").is_file()
    source = yaml.safe_load((run.folder / "config.yaml").read_text())["data"]["source"]
    assert source["init_args"]["hooks"] == ["layers.1"]


def test_progress_is_printed_unless_it_is_turned_off(x, capsys):
    sae.train(activations=x, sae=RULE, **SMALL)
    assert capsys.readouterr() == ("", "")
    sae.train(activations=x, sae=RULE, **SMALL | {"progress": True})
    assert "step 24/24" in capsys.readouterr().out


def test_a_failed_start_does_not_stand_in_the_way_of_a_retry(x):
    arguments = {"sae": RULE, "name": "a", **SMALL}
    with pytest.raises(sae.UserError, match="'no.txt' is not a file"):
        sae.train(model="gpt2", hooks="layers.1", text="no.txt", **arguments)
    assert sae.train(activations=x, **arguments).metrics["steps"] == 24


def test_rules_are_refused_where_they_are_made():
    with pytest.raises(sae.UserError, match="^k=9 exceeds d_sae=8; lower k or raise d_sae"):
        sae.TopK(d_sae=8, k=9)


def test_a_generator_that_ends_too_soon_says_what_to_give(x):
    with pytest.raises(sae.UserError, match="ended after 600 rows.*give a function"):
        sae.train(activations=iter(x[:600].split(100)), sae=RULE, **SMALL)
    long_enough = sae.train(activations=iter(x.split(100)), sae=RULE, **SMALL)
    assert long_enough.metrics["steps"] == 24
    with pytest.raises(sae.UserError, match="200 rows, and held_out_tokens=256 leaves none"):
        sae.train(activations=[x[:200]], sae=RULE, **SMALL)


def test_type_checkers_see_every_argument():
    parameters = set(inspect.signature(sae.train).parameters)
    assert set(TrainArguments.__annotations__) | {"sae"} == parameters
