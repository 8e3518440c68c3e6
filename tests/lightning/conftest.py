"""Folders of tiny models and the settings of tiny runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("transformers")
    from tiny_models import save_tiny

    families = ("bert", "llama")
    return {family: save_tiny(family, tmp_path_factory.mktemp(family)) for family in families}


@pytest.fixture(scope="session")
def write_config(model_folders) -> Callable[..., Path]:
    """write_config(folder): settings of a run on a real, if tiny, transformer and real files."""

    def write(folder: Path, family: str = "bert") -> Path:
        draw = random.Random(0)
        words = [f"w{i}" for i in range(50)]
        documents = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(400)]
        (folder / "text.txt").write_text("<|endoftext|>".join(documents))
        text = {"class_path": "FileText", "init_args": {"paths": [str(folder / "text.txt")]}}
        source = {
            "model": str(model_folders[family]),
            "hooks": ["layers.1"],
            "text": text,
            "context_size": 32,
        }
        settings = {
            "name": "tiny",
            "model": {
                "sae": {"class_path": "TopK", "init_args": {"d_sae": 256, "k": 4}},
                "dead_after": 256,
                "refresh_steps": 7,
            },
            "data": {
                "source": {"class_path": "ModelActivations", "init_args": source},
                "batch_size": 64,
                "block_batches": 4,
                "held_out_tokens": 256,
            },
            "trainer": {
                "max_steps": 90,
                "log_every_n_steps": 4,
                "val_check_interval": 30,
                "accelerator": "cpu",
            },
            "checkpoint_every": 13,
        }
        file = folder / "tiny.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file

    return write
