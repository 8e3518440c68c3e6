"""Weights & Biases sweeps: `wandb sweep` and `wandb agent` run real trials; the server is fake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers.logger import DummyLogger

import sae.lightning.loggers
from sae.cli.config import parse_config
from sae.cli.fit import STOPPED, fit
from sae.errors import UserError
from tiny import run_settings, write_settings

pytest.importorskip("wandb", reason="needs wandb, which is not installed")
from wandb.sdk.launch.sweeps.utils import (
    create_sweep_command,
    create_sweep_command_args,
    load_sweep_config,
)

REPO = Path(__file__).resolve().parents[2]
SWEEPS = sorted((REPO / "configs/sweeps").glob("*.yaml"))
SETTINGS = run_settings({})


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_shipped_sweeps_set_existing_settings(file, monkeypatch):
    """Build the command as an agent does, with the first and the last value of every parameter."""
    monkeypatch.chdir(REPO)
    sweep = load_sweep_config(str(file))
    assert sweep["metric"] == {"name": "held_out_fvu", "goal": "minimize"}
    for end, name in ((0, "first"), (-1, "last")):
        monkeypatch.setenv("WANDB_RUN_ID", name)
        values = {
            key: (parameter.get("values") or [parameter["min"], parameter["max"]])[end]
            for key, parameter in sweep["parameters"].items()
        }
        flags = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
        command = create_sweep_command(list(sweep["command"]))
        assert command[:4] == ["${env}", "${interpreter}", "${program}", "fit"]
        assert sweep["program"] == "train.py" and command[-1] == "${args}"
        settings = parse_config([*command[4:-1], *flags["args"]])
        assert settings.run.name == name and settings.options.wandb == "online"
        assert len(settings.run.members) == (4 if file.stem == "packed" else 1)
        for config in settings.run.member_configs.values():
            actual = {
                key: config["model"]["sae"]["init_args"][key.split(".")[-1]]
                if key.startswith("model.sae.")
                else reduce(getitem, key.split("."), config)
                for key in values
            }
            assert actual == values
        assert len({m.optim.lr for m in settings.run.members.values()}) == len(settings.run.members)


def test_unset_environment_variable_in_the_name_is_refused(monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    with pytest.raises(UserError, match=r"name=\$WANDB_RUN_ID references an unset"):
        parse_config(["--config", str(REPO / "configs/default.yaml"), "--name=$WANDB_RUN_ID"])


class Recorder(DummyLogger):
    """A logger that keeps its rows; at `stop_at` it sends the signal by which agents stop runs."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.rows, self.stop_at = [], stop_at

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, dict(metrics)))
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def recorded(folder: Path, monkeypatch, logger: Recorder, **changes: Any) -> int:
    config = write_settings(folder, {**SETTINGS, **changes})
    monkeypatch.setattr(sae.lightning.loggers, "build_loggers", lambda *args, **kwargs: [logger])
    return fit(["--config", str(config), "--runs", str(folder), "--name", "run"])


def test_loggers_get_the_final_metrics(tmp_path, monkeypatch):
    logger = Recorder()
    assert recorded(tmp_path, monkeypatch, logger) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    step, row = logger.rows[-1]
    assert step == 12
    held_out = {f"held_out_{name}": value for name, value in summary["held_out"].items()}
    assert row == held_out | {"dead_fraction": summary["dead_fraction"]}


def test_metrics_of_the_best_member_are_also_logged_without_its_name(tmp_path, monkeypatch):
    logger = Recorder()
    members = {"k=1": {"model.sae.k": 1}, "k=8": {"model.sae.k": 8}, "k=2": {"model.sae.k": 2}}
    assert recorded(tmp_path, monkeypatch, logger, members=members) == 0
    row, fvu = logger.rows[-1][1], {}
    for name in members:
        summary = json.loads((tmp_path / f"run/{name}/summary.json").read_text())
        fvu[name] = summary["held_out"]["fvu"]
        assert row[f"{name}/held_out_fvu"] == fvu[name]
        assert row[f"{name}/dead_fraction"] == summary["dead_fraction"]
    assert min(fvu, key=fvu.get) == "k=8" and len(set(fvu.values())) == 3
    assert row["held_out_fvu"] == fvu["k=8"] and row["held_out_l0"] == row["k=8/held_out_l0"]


@pytest.mark.parametrize("agent", [True, False])
def test_a_trial_stopped_by_an_agent_exits_with_success(agent, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    if agent:
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert recorded(tmp_path, monkeypatch, Recorder(stop_at=4)) == (0 if agent else STOPPED)
    assert not (tmp_path / "run/summary.json").exists()
    assert (tmp_path / "run/checkpoints/step=4.ckpt").is_file()


class Server(ThreadingHTTPServer):
    """A fake of the parts of api.wandb.ai that a sweep needs.

    It keeps the created sweep, and answers the heartbeats of an agent with one trial after another
    and then with the order to exit.
    """

    def __init__(self, trials: list[dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.orders = [
            {"type": "run", "run_id": f"trial{number}", "program": "train.py"}
            | {"args": {key: {"value": value} for key, value in trial.items()}}
            for number, trial in enumerate(trials)
        ]
        self.sweep: dict[str, Any] | None = None

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertSweep" in query:
            project = {"name": variables["projectName"], "entity": {"name": "me"}}
            self.sweep = yaml.safe_load(variables["config"])
            return {
                "upsertSweep": {
                    "sweep": {"id": "U3c=", "name": "sweep1", "project": project},
                    "configValidationWarnings": [],
                }
            }
        if "SweepWithRuns" in query:
            sweep = {"id": "U3c=", "config": yaml.safe_dump(self.sweep), "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "QWc="}}}
        if "agentHeartbeat" in query:
            busy = json.loads(variables["runState"])
            orders = [] if busy else [self.orders.pop(0)] if self.orders else [{"type": "exit"}]
            return {"agentHeartbeat": {"agent": {"id": "QWc="}, "commands": json.dumps(orders)}}
        assert "viewer" in query, query
        viewer = {"id": "VXNlcjox", "username": "me", "entity": "me", "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": []}}}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = self.server.answer(request["query"], request.get("variables") or {})
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(trials: list[dict[str, Any]]) -> Server:
        servers.append(Server(trials))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def wandb(folder: Path, server: Server, *words: str) -> str:
    """Run the `wandb` command in `folder` and return its output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *words],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("WANDB_")},
            "PATH": path,  # the agent starts `python`
            "OMP_NUM_THREADS": "1",
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "offline",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB__SERVICE_WAIT": "90",  # its helper starts slowly on a busy machine
            "WANDB_CONFIG_DIR": str(folder / ".config"),
            "WANDB_CACHE_DIR": str(folder / ".cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_agent_runs_the_trials_of_a_shipped_sweep(serve, tmp_path):
    """Run the shipped files, with a config of a small world."""
    (tmp_path / "configs/sweeps").mkdir(parents=True)
    shutil.copy(REPO / "train.py", tmp_path)
    shutil.copy(REPO / "configs/sweeps/grid.yaml", tmp_path / "configs/sweeps")
    (tmp_path / "configs/default.yaml").write_text(yaml.safe_dump(SETTINGS))
    trials = [{"model.sae.d_sae": 64, "model.sae.k": 2}, {"model.sae.d_sae": 96, "model.sae.k": 5}]
    server = serve(trials)
    assert "wandb agent me/sae/sweep1" in wandb(
        tmp_path, server, "sweep", "configs/sweeps/grid.yaml"
    )
    wandb(tmp_path, server, "agent", "me/sae/sweep1")
    assert not server.orders
    for number, trial in enumerate(trials):
        run = tmp_path / f"runs/trial{number}"
        summary = json.loads((run / "summary.json").read_text())
        assert {"model.sae.d_sae": summary["d_sae"], "model.sae.k": summary["k"]} == trial
        assert summary["steps"] == SETTINGS["trainer"]["max_steps"]
        (file,) = run.glob(f"wandb/offline-run-*-trial{number}/run-trial{number}.wandb")
        written = file.read_bytes()
        assert b"sweep1" in written  # the run belongs to the sweep
        for name in ("fvu", "l0", "dictionary_mcc_signed"):
            assert f"held_out_{name}".encode() in written
            assert str(summary["held_out"][name]).encode() in written
