"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
