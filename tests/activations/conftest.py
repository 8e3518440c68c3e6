"""Fixtures: sources on tiny models of four families."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from sae.activations import FileText, ModelActivations, loading  # noqa: E402
from tiny_models import FAMILIES, save_tiny, some_documents  # noqa: E402


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of a saved tiny model with its tokenizer."""
    return {family: save_tiny(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture
def text(tmp_path: Path) -> FileText:
    """43 documents of 1 to 60 words."""
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(some_documents(43)))
    return FileText([str(tmp_path / "text.txt")])


@pytest.fixture(scope="session")
def load_once() -> Callable[..., tuple]:
    """Load each model only once, because sources leave it unchanged."""
    return functools.cache(loading.load)


@pytest.fixture
def make_source(
    folders: dict[str, Path], text: FileText, load_once, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ModelActivations]:
    """Return make_source(family, **settings), which sets up a source on the 43 documents."""
    monkeypatch.setattr("sae.activations.model.load", load_once)

    def make(family: str = "bert", setup: bool = True, **settings) -> ModelActivations:
        settings = {"hooks": ["layers.1"], "text": text, "context_size": 16, **settings}
        settings = {"model_batch_size": 64, "held_out_every": 5, **settings}
        settings = {"model": str(folders[family]), **settings}
        source = ModelActivations(**settings)
        if setup:
            source.setup()
        return source

    return make
