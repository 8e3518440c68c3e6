"""Texts: documents in order from any start, and errors for unreadable files."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from sae.activations import BuiltinText, FileText, HuggingFaceText, Text
from sae.activations.text import MIN_PIECE_CHARACTERS
from sae.errors import UserError

DOCUMENTS = ["alpha one", "beta\ntwo", "gamma", "delta", "epsilon", "zeta"]


def write(folder: Path, kind: str) -> str:
    path = folder / f"text.{kind}"
    if kind == "txt":
        path.write_text("\n<|endoftext|>\n".join(DOCUMENTS) + "\n<|endoftext|>\n")
    elif kind == "jsonl":
        lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(DOCUMENTS)]
        path.write_text("\n".join(lines) + "\n\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": DOCUMENTS}), path, row_group_size=4)
    return str(path)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_documents_start_at_any_index(tmp_path: Path, kind: str) -> None:
    text = FileText([write(tmp_path, kind)])
    for start in range(len(DOCUMENTS) + 2):
        assert list(text.documents(start)) == DOCUMENTS[start:]


def test_documents_start_in_the_second_file(tmp_path: Path) -> None:
    paths = [write(tmp_path, kind) for kind in ("txt", "jsonl", "parquet")]
    assert list(FileText(paths).documents(8)) == (3 * DOCUMENTS)[8:]


def test_globs_are_sorted_and_match_nested_folders(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "a/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    text = FileText([str(tmp_path / "**" / "*.txt")])
    assert list(text.documents()) == ["a/1.txt", "a/3.txt", "b/2.txt"]


def test_separator_is_found_across_read_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.activations.text.CHUNK_CHARACTERS", 5)
    text = FileText([write(tmp_path, "txt")])
    assert list(text.documents()) == DOCUMENTS


def test_without_separator_a_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"{i} " + "x" * 700 for i in range(10)]
    (tmp_path / "a.txt").write_text("\n \n".join(paragraphs))
    pieces = list(FileText([str(tmp_path / "a.txt")]).documents())
    assert len(pieces) == 4
    assert all(len(piece) >= MIN_PIECE_CHARACTERS for piece in pieces[:-1])
    assert "\n \n".join(pieces) == "\n \n".join(paragraphs)


def test_hugging_face_text_reads_a_local_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path, "jsonl")
    text = HuggingFaceText(str(tmp_path))
    assert list(text.documents()) == DOCUMENTS
    assert list(text.documents(4)) == DOCUMENTS[4:]
    with pytest.raises(UserError, match=r"text\.field='body'.*'id', 'text'"):
        list(HuggingFaceText(str(tmp_path), field="body").documents())
    with pytest.raises(UserError, match=r"split='test'"):
        list(HuggingFaceText(str(tmp_path), split="test").documents())


def test_builtin_text_is_ordered_and_english() -> None:
    text = BuiltinText()
    documents = list(text.documents())
    assert documents[60:120] == list(islice(BuiltinText().documents(60), 60))
    assert documents[70:] == list(text.documents(70))
    assert 1.5e6 < sum(map(len, documents)) < 4e6
    # The docstrings of the json package, in the order of its source.
    package = next(x for x in documents if x.startswith("JSON (JavaScript Object Notation)"))
    assert package.index("Serialize ``obj`` as a JSON formatted stream") < package.index(
        "Deserialize ``s``"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl' line 2 is not JSON"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"body": "b"}\n',
            r"text\.field='text'.*line 2, which has 'body'",
        ),
        ("a.jsonl", '{"text": null}\n', r"line 1 is None, not text"),
        ("a.jsonl", "[1]\n", r"line 1, which has no fields"),
        ("a.txt", b"caf\xe9 au lait", r"a\.txt' is not UTF-8"),
        ("a.parquet", "no parquet", r"a\.parquet' is not a readable parquet file"),
        ("a.csv", "text\nx\n", r"a\.csv' has an unknown file type; accepted are \.txt, \.jsonl"),
    ],
    ids=["json", "field", "null", "list", "utf8", "parquet", "kind"],
)
def test_unreadable_text_error_names_the_place(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(FileText([str(tmp_path / name)]).documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": ["nowhere.txt"]}, r"text\.paths='nowhere\.txt' is not a file"),
        ({"paths": ["none-*.txt"]}, r"text\.paths='none-\*\.txt' matches no file"),
        ({"paths": []}, r"text\.paths=\[\] names no file"),
        ({"paths": ["a.txt"], "separator": ""}, r"text\.separator=''"),
    ],
    ids=["missing", "glob", "none", "separator"],
)
def test_settings_without_text_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(FileText(**settings).documents())


@pytest.mark.parametrize(
    ("content", "message"),
    [(" \n\n ", "has no document"), ("a<|endoftext|>b", "has 2 documents, too few")],
    ids=["empty", "few"],
)
def test_text_with_too_few_documents_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        FileText([str(tmp_path / "a.txt")]).check(3)


def test_check_reads_only_as_many_documents_as_needed() -> None:
    class Endless(Text):
        def documents(self, start: int = 0):
            assert start == 0
            yield from ("x" for _ in islice(iter(int, 1), 3))
            raise AssertionError("read on")

        def fingerprint(self) -> str:
            return ""

    Endless().check(3)
