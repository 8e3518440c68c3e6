"""A wheel, installed where the checkout cannot be seen, trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # --no-build-isolation: setuptools and wheel are installed here, and a build needs no network.
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
        + ["--wheel-dir", str(folder), str(REPO)],
        check=True,
    )
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_dev_extras_resolve_with_torch_from_the_index(python, tmp_path):
    """Resolve the environment of `make train` and every pin, by metadata, without installing.

    Fails if two pins contradict each other (torch requires one exact Triton) or if a pinned release
    has no wheel for this Python. uv does not see local wheels that pip is configured to prefer.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-cache"]
    command += ["pyproject.toml", "constraints.txt", "--extra", "dev"]
    command += ["--constraints", "constraints.txt", "--only-binary", ":all:"]
    command += ["--python-version", python, "--no-python-downloads"]
    command += ["--python-platform", "x86_64-manylinux_2_28"]
    command += ["--output-file", str(tmp_path / "resolved.txt")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if done.returncode and "No solution found" not in done.stderr and "CI" not in os.environ:
        pytest.skip(f"the package index cannot be reached: {done.stderr}")
    assert done.returncode == 0, done.stderr
    resolved = (tmp_path / "resolved.txt").read_text()
    assert "nvidia-" in resolved  # torch is the CUDA build of the index, not a local CPU build


@pytest.mark.slow
def test_wheel_holds_every_room_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {p for p in names if p.endswith(".py")}
    here = {str(p.relative_to(REPO)) for p in (REPO / "sae").rglob("*.py")}
    kernels = REPO / "kernels"
    here |= {f"sae_kernels/{p.relative_to(kernels)}" for p in kernels.rglob("*.py")}
    assert code == here
    assert "sae_configs/default.yaml" in names and "sae_configs/worlds/superposition.yaml" in names
    assert {"sae/browser/report.html", "sae/py.typed", "sae_kernels/py.typed"} <= names


@pytest.mark.slow
def test_installed_wheel_trains_outside_the_repository(wheel, tmp_path):
    """The new environment sees this one's libraries, but of ours only what the wheel brought."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
    )
    # The path alone, not a .pth: those of this environment would bring in the editable checkout.
    environment = {
        **os.environ,
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "HF_HUB_OFFLINE": "1",
    }
    work = tmp_path / "elsewhere"
    work.mkdir()
    found = subprocess.run(
        [python, "-c", "import sae, sae_kernels.decode as d; print(sae.__file__, d.__file__)"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(REPO) not in found
    command = [python, "-m", "sae.cli.main", "fit", "--trainer.max_steps", "3"]
    small = [
        "--data.batch_size",
        "256",
        "--data.block_batches",
        "3",
        "--data.held_out_tokens",
        "512",
    ]
    done = subprocess.run(
        [*command, *small], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((work / "runs/default/summary.json").read_text())
    assert summary["tokens"] == 768 and summary["git_commit"] is None
