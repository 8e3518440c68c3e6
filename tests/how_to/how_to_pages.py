"""The pages in docs/how-to: their code blocks, and a process of its own that runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tiny import as_flags

REPO = Path(__file__).resolve().parents[2]
# Flags that make the command of a page short.
SHORT = as_flags(
    {
        "trainer.max_steps": 30,
        "trainer.log_every_n_steps": 10,
        "trainer.accelerator": "cpu",
        "checkpoint_every": 15,
        "data.batch_size": 128,
        "data.held_out_tokens": 256,
    }
)


def read_page(name: str) -> str:
    """Return the text of docs/how-to/`name`.md."""
    return (REPO / f"docs/how-to/{name}.md").read_text(encoding="utf-8")


def code_blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of one language, in the order of the page."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    return [code for name, code in blocks if name == language]


def train_arguments(command: str) -> list[str]:
    """Return the arguments of a `python train.py` command, with the full path of its config."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["python", "train.py"]
    return [str(REPO / word) if word.startswith("configs/") else word for word in words[2:]]


def run_python(
    *arguments: str, cwd: Path, module_folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process, so that nothing is registered in this one.

    Args:
        arguments: Arguments of the interpreter, such as `-c` and code.
        cwd: Folder to run in.
        module_folder: Folder from which modules are imported; by default `cwd`.
    """
    path = [str(module_folder or cwd), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
