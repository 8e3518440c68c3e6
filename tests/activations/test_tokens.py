"""Contexts: their tokens, the positions used, and reading from a cursor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sae.activations import FileText, ModelActivations
from sae.activations.context_reader import START, ContextReader
from sae.activations.tokens import Contexts, Layout, PositionRule
from sae.errors import UserError
from tiny_models import FAMILIES, tiny_tokenizer

AROUND = {"bert": (("[CLS]",), ("[SEP]",)), "llama": (("<s>",), ()), "gpt2": ((), ())}
AROUND["neox"] = ((), ())
SEPARATOR = {"bert": "[SEP]", "llama": "<s>", "gpt2": "<|end|>", "neox": "<|end|>"}


def reader(family: str, text: FileText, packing: str, cursor=START, **given) -> ContextReader:
    tokenizer = tiny_tokenizer(family)
    return ContextReader(
        text,
        lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"],
        Layout.from_tokenizer(tokenizer, 16, packing),
        PositionRule.from_tokenizer(tokenizer, skip_first=given.pop("skip_first", 0)),
        **{"split": "train", "held_out_every": 5, "cursor": cursor, **given},
    )


def rows_of(contexts: Contexts) -> list[tuple]:
    columns = (x.tolist() for x in vars(contexts).values())
    return [tuple(map(tuple, row)) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_contexts_hold_every_token_of_the_split_once(
    text: FileText, family: str, packing: str, split: str
) -> None:
    tokenizer = tiny_tokenizer(family)
    documents = list(text.documents())
    chosen = [i for i in range(43) if (i % 5 == 4) == (split == "held_out")]
    expected = {
        (i, p): token
        for i in chosen
        for p, token in enumerate(tokenizer(documents[i], add_special_tokens=False)["input_ids"])
    }
    read = reader(family, text, packing, split=split)
    tokens_at = {}
    while (cursor := read.cursor) is not None and cursor[0] == 0:
        row = read.take_rows(1)
        at = row.position_mask[0]
        for d, p, token in zip(
            row.document[0][at], row.position[0][at], row.tokens[0][at], strict=True
        ):
            if (int(d), int(p)) in tokens_at:  # the next pass started within this context
                assert int(d) == chosen[0] and packing == "packed" and split == "train"
            tokens_at[int(d), int(p)] = int(token)
    assert tokens_at == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packing", ["packed", "document"])
def test_context_layout_equals_the_tokenizer(text: FileText, family: str, packing: str) -> None:
    tokenizer = tiny_tokenizer(family)
    prefix, suffix = ([*map(tokenizer.convert_tokens_to_ids, x)] for x in AROUND[family])
    separator = tokenizer.convert_tokens_to_ids(SEPARATOR[family])
    contexts = reader(family, text, packing).take_rows(40)
    lengths = contexts.attention_mask.sum(1).tolist()
    special = set(tokenizer.all_special_ids)
    for row, length in enumerate(lengths):
        tokens = contexts.tokens[row].tolist()
        assert contexts.attention_mask[row].tolist() == [1] * length + [0] * (16 - length)
        assert tokens[: len(prefix)] == prefix
        assert tokens[length - len(suffix) : length] == suffix
        body = tokens[len(prefix) : length - len(suffix)]
        assert {x for x in body if x in special} <= {separator}
        usable = [i < length and token not in special for i, token in enumerate(tokens)]
        assert contexts.position_mask[row].tolist() == usable
        if packing == "document":
            assert separator not in body
            assert len(set(contexts.document[row].tolist())) == 1
    if packing == "packed":
        assert set(lengths) == {16} and separator in contexts.tokens[:, 1:-1]
    else:
        assert min(lengths) < 16


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_reading_from_any_cursor_gives_the_same_contexts(text: FileText, packing: str) -> None:
    read = reader("bert", text, packing)
    rows, cursors = [], []
    for _ in range(200):  # past the first pass
        cursors.append(read.cursor)
        rows += rows_of(read.take_rows(1))
    assert {pass_ for pass_, _, _ in cursors} == {0, 1, 2}
    for at in range(0, 190, 7):
        again = reader("bert", text, packing, cursor=cursors[at])
        assert rows_of(again.take_rows(1)) == rows[at : at + 1]
        assert again.cursor == cursors[at + 1]


def test_size_of_tokenisation_groups_has_no_effect(
    text: FileText, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(reader("gpt2", text, "packed").take(300))
    monkeypatch.setattr("sae.activations.context_reader.GROUP_CHARACTERS", 1)
    assert rows_of(reader("gpt2", text, "packed").take(300)) == whole


def test_take_stops_at_the_context_that_fills_the_size(text: FileText) -> None:
    read = reader("bert", text, "document")
    contexts = read.take(100)
    counted = contexts.position_mask.sum(1)
    assert counted.sum() >= 100 > counted[:-1].sum()


def test_last_held_out_context_is_padded_and_kept(text: FileText) -> None:
    read = reader("gpt2", text, "packed", split="held_out")
    contexts = read.take(10**6)
    assert contexts.attention_mask[:-1].all() and not contexts.attention_mask[-1].all()
    assert read.cursor is None and read.take(1) is None


def test_skip_first_leaves_out_the_start_of_contexts(text: FileText) -> None:
    all_ = reader("llama", text, "packed").take_rows(20)
    skipping = reader("llama", text, "packed", skip_first=4).take_rows(20)
    assert not skipping.position_mask[:, :4].any() and all_.position_mask[:, 1:4].any()
    assert torch.equal(skipping.position_mask[:, 4:], all_.position_mask[:, 4:])
    assert torch.equal(skipping.tokens, all_.tokens)


def test_unknown_token_is_used_unless_it_is_another_special_token() -> None:
    for family, counts in (("bert", True), ("llama", True), ("gpt2", False)):
        tokenizer = tiny_tokenizer(family)
        row = np.array([tokenizer.unk_token_id])
        assert PositionRule.from_tokenizer(tokenizer).token_mask(row).item() is counts


def test_activation_masks_find_non_finite_values_and_outliers() -> None:
    rule = PositionRule(np.zeros(1, bool), outlier_norm=3.0)
    a, b = torch.ones(7, 4), torch.ones(7, 4)
    a[1, 2], b[2, 0], a[3] = float("nan"), float("inf"), 3.5
    b[4] = 2.5
    finite, inlier = rule.activation_masks({"a": a, "b": b})
    assert finite.tolist() == [True, False, False, True, True, True, True]
    assert inlier.tolist() == [True, True, True, False, True, True, True]
    assert PositionRule(np.zeros(1, bool)).activation_masks({"a": a})[1].all()


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_text_without_a_usable_token_is_refused(tmp_path, packing: str, split: str) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(["[SEP]"] * 9))
    text = FileText([str(tmp_path / "a.txt")])
    with pytest.raises(UserError, match=f"no usable token in its {split} documents"):
        reader("bert", text, packing, split=split).take(10)


def test_skip_first_that_leaves_no_token_is_refused(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(["w1 w2"] * 9))
    text = FileText([str(tmp_path / "a.txt")])
    assert reader("bert", text, "document").take(10) is not None
    with pytest.raises(UserError, match="lower skip_first=5"):
        reader("bert", text, "document", skip_first=5).take(10)


def test_context_size_without_room_for_text_is_refused() -> None:
    with pytest.raises(UserError, match="context_size=2 leaves no room"):
        Layout.from_tokenizer(tiny_tokenizer("bert"), 2)


def test_contexts_iterate_over_the_split(make_source: Callable[..., ModelActivations]) -> None:
    source = make_source("bert", model_batch_size=4)
    chunks = list(source.contexts("held_out"))
    assert all(len(chunk) <= 4 for chunk in chunks)
    assert {d % 5 for chunk in chunks for d in chunk.document.flatten().tolist()} == {4}
    rows = Contexts.cat(chunks)
    more = Contexts.cat(list(source.contexts("held_out", rows=1000)))
    assert rows_of(rows) == rows_of(more)
