"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae.errors import UserError


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either its old content or all of the new one."""
    path = Path(path)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staging.write_text(text, encoding="utf-8", newline="\n")
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path, names: set[str]) -> Iterator[Path]:
    """A folder to write the files `names` into, which takes the place of `folder` at the end.

    Whatever goes wrong before leaves `folder` as it was. One that holds anything but `names` is
    refused with a UserError, so that no slip of the hand replaces somebody's work.
    """
    folder = Path(folder)
    others = sorted({p.name for p in folder.iterdir()} - names) if folder.exists() else []
    if others:
        raise UserError(f"{folder} already holds {others[0]}; give a folder of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging
        staging.chmod(0o755)
        if folder.exists():
            # A folder cannot be replaced by one that is full, so the old one steps aside.
            aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            os.replace(folder, aside / "old")
            os.replace(staging, folder)
            shutil.rmtree(aside)
        else:
            os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
