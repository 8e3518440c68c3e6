"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before torch: a process that a test starts uses one thread too, since tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SAE_QUIET"] = "1"  # tests compare what is printed; tests/test_progress.py unsets it

import torch  # noqa: E402

import sae_kernels  # noqa: E402, F401 (sets MKL's mode before a test multiplies matrices)

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """A folder beside the checkout with a small language model and text; absent for most users."""
    path = REPO.parent / "shared"
    if not (path / "models" / "stories260k").is_dir():
        pytest.skip("needs ../shared (a small language model and text), which is not here")
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being split: 30 times over where two threads share a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("transformers")
    from tiny_models import save_tiny

    families = ("bert", "llama")
    return {family: save_tiny(family, tmp_path_factory.mktemp(family)) for family in families}


@pytest.fixture(scope="session")
def write_config(tiny_folders) -> Callable[..., Path]:
    """Return write_config(folder): a config of a run on a tiny transformer and text files."""
    from tiny import run_settings, write_settings

    def write(folder: Path, family: str = "bert") -> Path:
        draw = random.Random(0)
        words = [f"w{i}" for i in range(50)]
        documents = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(400)]
        (folder / "text.txt").write_text("<|endoftext|>".join(documents))
        text = {"class_path": "FileText", "init_args": {"paths": [str(folder / "text.txt")]}}
        source = {
            "model": str(tiny_folders[family]),
            "hooks": ["layers.1"],
            "text": text,
            "context_size": 32,
        }
        changes = {
            "name": "tiny",
            "model.sae.d_sae": 256,
            "model.dead_after": 256,
            "model.refresh_steps": 7,
            "data.source": {"class_path": "ModelActivations", "init_args": source},
            "trainer.max_steps": 90,
            "trainer.val_check_interval": 30,
            "checkpoint_every": 13,
        }
        return write_settings(folder, run_settings(changes), "tiny.yaml")

    return write
