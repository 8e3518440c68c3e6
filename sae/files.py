"""Atomic writing of files and folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae.errors import UserError


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically: `path` holds its old content or all of the new one."""
    path = Path(path)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staging.write_text(text, encoding="utf-8", newline="\n")
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path, names: set[str]) -> Iterator[Path]:
    """Yield a temporary folder to write the files `names` into; it replaces `folder` at the end.

    If an error is raised before that, `folder` stays as it was.

    Raises:
        UserError: `folder` holds files other than `names`, which would be lost.
    """
    folder = Path(folder)
    other_files = sorted({p.name for p in folder.iterdir()} - names) if folder.exists() else []
    if other_files:
        raise UserError(f"{folder} already holds {other_files[0]}; give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging
        staging.chmod(0o755)
        if folder.exists():
            # os.replace cannot replace a folder that is not empty, so move the old one away first.
            old_parent = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            os.replace(folder, old_parent / "old")
            os.replace(staging, folder)
            shutil.rmtree(old_parent)
        else:
            os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
