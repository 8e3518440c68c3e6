"""Texts: documents in a fixed order, from files or from the Hugging Face hub."""

from __future__ import annotations

import glob
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sae.configurable import Configurable
from sae.errors import UserError

MIN_PIECE_CHARACTERS = 2000
"""Least length of a document cut from a .txt file without separators."""
CHUNK_CHARACTERS = 1 << 22
"""Characters of a .txt file read at once."""


class Text(Configurable, ABC):
    """Documents in a fixed order; document n is the same in every pass and every process."""

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[str]:
        """Yield documents start, start + 1, ... to the end of one pass.

        Raises:
            UserError: Something in the text cannot be read; nothing is skipped silently.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short string that differs for texts with different settings or files."""

    def check(self, at_least: int) -> None:
        """Raise UserError if there are fewer than `at_least` documents."""
        count = sum(1 for _ in islice(self.documents(), at_least))
        if count == 0:
            raise UserError(f"{self!r} has no document; give it text")
        if count < at_least:
            raise UserError(
                f"{self!r} has {count} documents, too few to hold any out with "
                f"held_out_every={at_least}; give more, or lower held_out_every (to 2 at least)"
            )


class FileText(Text):
    """Text from .txt, .jsonl and .parquet files, read as a stream.

    A .txt file is split at `separator`; a file without it is split at blank lines into documents of
    at least 2,000 characters. White space is stripped from both ends of a document, and empty
    documents are dropped. A .jsonl file has one document per line (blank lines are ignored), a
    .parquet file one per row.

    Args:
        paths: Files or globs (`**` matches nested folders). Matches of one glob are sorted.
        separator: The string between two documents of a .txt file.
        field: Name of the key or column of .jsonl and .parquet files that has the text.

    Raises:
        UserError: `paths` or `separator` is empty.
    """

    def __init__(
        self,
        paths: list[str | Path] | str | Path,
        separator: str = "<|endoftext|>",
        field: str = "text",
    ) -> None:
        given = [paths] if isinstance(paths, str | Path) else paths
        self.paths = [str(path) for path in given]
        self.separator = separator
        self.field = field
        if not self.paths:
            raise UserError("text.paths=[] names no file; give at least one path or glob")
        if not separator:
            raise UserError(
                "text.separator='' cannot separate documents; give at least one character"
            )

    def __repr__(self) -> str:
        return f"text.paths={self.paths}"

    def documents(self, start: int = 0) -> Iterator[str]:
        n = 0
        for path in self._files():
            for document in _READERS[path.suffix](path, self, start - n):
                if n >= start:
                    yield document
                n += 1

    def fingerprint(self) -> str:
        files = [(str(path), path.stat().st_size) for path in self._files()]
        return repr((files, self.separator, self.field))

    def _files(self) -> list[Path]:
        files: list[Path] = []
        for pattern in self.paths:
            path = Path(pattern).expanduser()
            names = sorted(glob.glob(str(path), recursive=True))
            matches = [path] if path.is_file() else [Path(x) for x in names if Path(x).is_file()]
            if not matches:
                problem = "matches no file" if glob.has_magic(pattern) else "is not a file"
                raise UserError(f"text.paths={pattern!r} {problem} (looked from {Path.cwd()})")
            files += matches
        for path in files:
            if path.suffix not in _READERS:
                raise UserError(
                    f"text.paths={str(path)!r} has an unknown file type; accepted are "
                    f"{', '.join(_READERS)}"
                )
        return files


def _lines(path: Path) -> Iterator[str]:
    yield from _guarded(path, lambda file: iter(file.readline, ""))


def _chunks(path: Path) -> Iterator[str]:
    yield from _guarded(path, lambda file: iter(lambda: file.read(CHUNK_CHARACTERS), ""))


def _guarded(path: Path, read: Any) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            yield from read(file)
    except UnicodeDecodeError as error:
        raise UserError(f"text.paths={str(path)!r} is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UserError(f"text.paths={str(path)!r} cannot be read: {error.strerror}") from error


def _txt(path: Path, text: FileText, skip: int) -> Iterator[str]:
    pieces = _separated if _occurs(path, text.separator) else _paragraphs
    for piece in pieces(path, text.separator):
        if piece := piece.strip():
            yield piece


def _occurs(path: Path, separator: str) -> bool:
    tail = ""
    for chunk in _chunks(path):
        if separator in tail + chunk:
            return True
        tail = (tail + chunk)[-len(separator) :]
    return False


def _separated(path: Path, separator: str) -> Iterator[str]:
    rest = ""
    for chunk in _chunks(path):
        *documents, rest = (rest + chunk).split(separator)
        yield from documents
    yield rest


def _paragraphs(path: Path, separator: str) -> Iterator[str]:
    piece: list[str] = []
    length = 0
    for line in _lines(path):
        if length >= MIN_PIECE_CHARACTERS and not line.strip():
            yield "".join(piece)
            piece, length = [], 0
        piece.append(line)
        length += len(line)
    yield "".join(piece)


def _jsonl(path: Path, text: FileText, skip: int) -> Iterator[str | None]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        if skip > 0:
            skip -= 1
            yield None
            continue
        where = f"text.paths={str(path)!r} line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error}); fix or remove the line") from error
        yield _field(record if isinstance(record, dict) else {}, text.field, where)


def _parquet(path: Path, text: FileText, skip: int) -> Iterator[str | None]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"text.paths={str(path)!r} needs pyarrow; pip install 'sae-workbench[hf]'"
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(
            f"text.paths={str(path)!r} is not a readable parquet file: {error}"
        ) from error
    names = file.schema_arrow.names
    _field(dict.fromkeys(names, ""), text.field, f"text.paths={str(path)!r}")
    row = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row + rows <= skip:
            yield from [None] * rows
            row += rows
            continue
        for batch in file.iter_batches(1024, row_groups=[group], columns=[text.field]):
            for value in batch.column(0).to_pylist():
                yield _field({text.field: value}, text.field, f"text.paths={str(path)!r} row {row}")
                row += 1


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}


def _field(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        fields = ", ".join(map(repr, record)) or "no fields"
        raise UserError(f"text.field={field!r} is not in {where}, which has {fields}")
    if not isinstance(value := record[field], str):
        raise UserError(f"text.field={field!r} in {where} is {value!r:.40}, not text")
    return value


class HuggingFaceText(Text):
    """Text from a data set of the Hugging Face hub or a local folder, streamed in its own order.

    Args:
        dataset: Hub id such as `roneneldan/TinyStories`, or a folder of data files.
        split: Name of the split.
        field: Name of the column with the text.
        config: Name of the configuration, for data sets that have several.
    """

    def __init__(
        self, dataset: str, split: str = "train", field: str = "text", config: str | None = None
    ) -> None:
        self.dataset = dataset
        self.split = split
        self.field = field
        self.config = config

    def __repr__(self) -> str:
        return f"text.dataset={self.dataset!r}"

    def documents(self, start: int = 0) -> Iterator[str]:
        try:
            import datasets
        except ImportError:
            raise UserError(f"{self!r} needs datasets; pip install 'sae-workbench[hf]'") from None
        try:
            rows = datasets.load_dataset(
                self.dataset, self.config, split=self.split, streaming=True
            ).skip(start)
            for row, record in enumerate(rows, start):
                yield _field(record, self.field, f"{self!r} row {row}")
        except UserError:
            raise
        except Exception as error:  # the hub, the file readers and the parsers share no base class
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self!r} (split={self.split!r}, config={self.config!r}) cannot be read: {reason}"
            ) from error

    def fingerprint(self) -> str:
        return repr((self.dataset, self.split, self.field, self.config))
