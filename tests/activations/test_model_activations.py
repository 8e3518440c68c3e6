"""Blocks of model activations: pure functions of their index, complete, without bad positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sae.activations import Batch, FileText, ModelActivations
from sae.activations.provenance import TEXT_COLUMNS
from sae.errors import UserError
from tiny_models import FAMILIES, positions

Make = Callable[..., ModelActivations]


def same(a: Batch, b: Batch) -> bool:
    assert a.provenance is not None and b.provenance is not None
    pairs = [(a.provenance[name], b.provenance[name]) for name in TEXT_COLUMNS]
    pairs += [(a.acts[hook], b.acts[hook]) for hook in a.acts]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packing", ["packed", "document"])
def test_block_equals_a_plain_forward_pass(make_source: Make, family: str, packing: str) -> None:
    source = make_source(family, packing=packing, hooks=["layers.1", "layers.0.mlp"])
    block = source.block("train", 0, 100, 0)
    rows = next(source.contexts("train", rows=100))
    at = rows.position_mask.flatten().nonzero().squeeze(1)[:100]
    acts = source.model.activations(rows.tokens, rows.attention_mask)
    for hook in source.hooks:
        torch.testing.assert_close(block.acts[hook], acts[hook].flatten(0, 1)[at])
        assert block.acts[hook].shape == (100, source.widths[hook])
    assert torch.equal(block.provenance["token"], rows.tokens.flatten()[at])
    assert torch.equal(block.provenance["document"], rows.document.flatten()[at])
    assert torch.equal(block.provenance["position"], rows.position.flatten()[at])


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_blocks_do_not_depend_on_the_order_of_requests(
    make_source: Make, packing: str, split: str
) -> None:
    forward = make_source(packing=packing)
    blocks = [forward.block(split, i, 64, 0) for i in range(9)]
    assert not same(blocks[0], blocks[1])
    other = make_source(packing=packing)
    for i in (5, 2, 8, 2, 3, 4):
        assert same(other.block(split, i, 64, 0), blocks[i])
    assert same(forward.block(split, 0, 64, 0), blocks[0])


def test_blocks_share_no_position_and_lose_only_tails(make_source: Make) -> None:
    source = make_source()
    blocks = [source.block("train", i, 60, 0) for i in range(5)]
    places = [place for block in blocks for place in positions(block)]
    assert len(set(places)) == len(places) == 300
    counts = source.counts
    rows = next(source.contexts("train", rows=100))
    used = rows.document.new_tensor(source._starts["train", 60][5])
    end = (rows.start == used).all(1).nonzero().item()
    assert counts.kept == 300 and counts.passes == 1
    assert counts.kept + counts.tail + counts.skipped == end * 16
    assert counts.tail == int(rows.position_mask[:end].sum()) - 300 > 0


def test_splits_share_no_document(make_source: Make) -> None:
    source = make_source()
    train = {
        d
        for i in range(20)
        for d in source.block("train", i, 100, 0).provenance["document"].tolist()
    }
    held = set()
    for i in range(20):
        held |= set(source.block("held_out", i, 50, 0).provenance["document"].tolist())
    assert source.counts.passes > 1
    assert train == {i for i in range(43) if i % 5 != 4}
    assert held == {i for i in range(43) if i % 5 == 4}


def test_held_out_ends_and_is_complete(make_source: Make) -> None:
    source = make_source()
    sizes = [len(source.block("held_out", i, 50, 0)) for i in range(12)]
    whole = sum(int(chunk.position_mask.sum()) for chunk in source.contexts("held_out"))
    short = next(i for i, size in enumerate(sizes) if size < 50)
    assert sizes[short] > 0 and set(sizes[:short]) == {50} and not any(sizes[short + 1 :])
    assert sum(sizes) > whole - 15 * short
    assert source.block("held_out", 100, 50, 0).acts["layers.1"].shape == (0, 16)


def test_training_repeats_the_text(make_source: Make) -> None:
    source = make_source()
    block = source.block("train", 0, 2500, 0)
    assert len(block) == 2500 and source.counts.passes == 3
    assert len(set(positions(block))) < 1250


def test_hints_save_time_and_change_nothing(make_source: Make) -> None:
    first = make_source()
    blocks = [first.block("train", i, 64, 0) for i in range(9)]
    hints = first.hints("train", 64)
    helped, plain = make_source(), make_source()
    helped.use_hints("train", 64, hints)
    assert same(helped.block("train", 8, 64, 0), blocks[8])
    assert same(plain.block("train", 8, 64, 0), blocks[8])
    assert len(helped._starts["train", 64]) < len(plain._starts["train", 64])


@pytest.mark.parametrize(
    "changed", [{"context_size": 12}, {"held_out_every": 4}, {"packing": "document"}], ids=str
)
def test_hints_of_another_layout_are_ignored(make_source: Make, changed: dict) -> None:
    first = make_source()
    first.block("train", 6, 64, 0)
    plain, misled = make_source(**changed), make_source(**changed)
    misled.use_hints("train", 64, first.hints("train", 64))
    assert same(misled.block("train", 6, 64, 0), plain.block("train", 6, 64, 0))


class Broken:
    """Makes activations of a model NaN or large at chosen tokens."""

    def __init__(self, source: ModelActivations, values: dict[int, float]) -> None:
        self.activations = source.model.activations
        self.values = values
        source.model.activations = self

    def __call__(self, tokens: torch.Tensor, mask: Any = None) -> dict[str, torch.Tensor]:
        acts = self.activations(tokens, mask)
        for token, value in self.values.items():
            acts["layers.1"][tokens == token] *= value
        return acts


@pytest.fixture
def rare(make_source: Make) -> int:
    """Return a token that occurs 1 to 10 times in the first 1,000."""
    tokens = make_source().block("train", 0, 1000, 0).provenance["token"]
    counts = torch.bincount(tokens)
    return int((((counts > 0) & (counts <= 10)).nonzero())[0])


@pytest.fixture
def text(tmp_path) -> FileText:
    """Return the usual text with a few rare words."""
    from tiny_models import some_documents

    documents = some_documents(43)
    documents = [d.replace("w7", "w8").replace("w9 ", "w8 ") for d in documents]
    documents[3] += " w9"
    documents[11] += " w9"
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(documents))
    return FileText([str(tmp_path / "text.txt")])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 50.0], ids=["nan", "inf", "large"])
def test_bad_activations_are_replaced_and_counted(
    make_source: Make, rare: int, value: float
) -> None:
    clean = make_source().block("train", 0, 1000, 0)
    source = make_source(outlier_norm=5.0)
    Broken(source, {rare: value})
    block = source.block("train", 0, 1000, 0)
    bad = clean.provenance["token"] == rare
    n = int(bad.sum())
    assert n > 0 and len(block) == 1000 and rare not in block.provenance["token"]
    assert torch.equal(block.acts["layers.1"][~bad], clean.acts["layers.1"][~bad])
    # A bad position is replaced by a complete row of the block, with its provenance.
    acts_at = dict(zip(positions(clean), clean.acts["layers.1"], strict=True))
    filled = positions(block)
    for i in bad.nonzero().squeeze(1).tolist():
        assert torch.equal(block.acts["layers.1"][i], acts_at[filled[i]])
    counts = source.counts
    assert (counts.non_finite, counts.outliers) == ((0, n) if value == 50 else (n, 0))


def test_bad_activations_are_dropped_from_held_out(make_source: Make) -> None:
    clean = make_source().block("held_out", 0, 100, 0)
    word = int(clean.provenance["token"][0])
    source = make_source(outlier_norm=5.0)
    Broken(source, {word: 50.0})
    block = source.block("held_out", 0, 100, 0)
    assert same(block, clean.rows((clean.provenance["token"] != word).nonzero().squeeze(1)))
    assert source.counts.outliers == 0  # counts cover training only


def test_outliers_stay_without_outlier_norm(make_source: Make, rare: int) -> None:
    source = make_source()
    Broken(source, {rare: 1000.0})
    assert rare in source.block("train", 0, 1000, 0).provenance["token"]


def test_too_many_bad_activations_stop_the_run(make_source: Make) -> None:
    source = make_source()
    tokens = source.block("train", 2, 500, 0).provenance["token"]
    often = int(torch.bincount(tokens).argmax())
    n = int((tokens == often).sum())
    Broken(source, {often: float("nan")})
    with pytest.raises(UserError, match=rf"^{n} of 500 activations in train block 2 .*\(float32\)"):
        source.block("train", 2, 500, 0)


def test_block_read_twice_is_counted_once(make_source: Make) -> None:
    source = make_source()
    source.block("train", 0, 64, 0)
    once = source.counts
    source.block("train", 0, 64, 0)
    assert source.counts == once


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hooks": []}, r"source\.hooks=\[\]"),
        ({"hooks": ["layers.1", "layers.1"]}, r"source\.hooks=.* twice"),
        ({"context_size": 1}, r"source\.context_size=1 is too small; give at least 2"),
        ({"model_batch_size": 0}, r"source\.model_batch_size=0"),
        ({"held_out_every": 1}, r"source\.held_out_every=1"),
        ({"skip_first": 15}, r"source\.skip_first=15 .*context_size=16"),
        ({"outlier_norm": 0.5}, r"source\.outlier_norm=0\.5"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_constructor_refuses_impossible_settings(make_source: Make, settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_source(setup=False, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_size": 65}, r"source\.context_size=65 exceeds the 64 tokens"),
        ({"held_out_every": 44}, r"has 43 documents, too few to hold any out"),
        ({"text": FileText(["nowhere.txt"])}, r"text\.paths='nowhere\.txt' is not a file"),
        ({"hooks": ["layers.9"]}, r"hooks='layers\.9' matches no module"),
    ],
    ids=["context", "held out", "text", "hook"],
)
def test_setup_refuses_settings_that_do_not_fit_the_model(
    make_source: Make, settings, message: str
) -> None:
    source = make_source(setup=False, **settings)
    with pytest.raises(UserError, match=message):
        source.setup()


def test_config_file_builds_the_source(folders, text: FileText) -> None:
    from jsonargparse import ArgumentParser

    from sae.activations import Source

    parser = ArgumentParser()
    parser.add_argument("--source", type=Source)
    parsed = parser.parse_object(
        {
            "source": {
                "class_path": "ModelActivations",
                "init_args": {
                    "model": str(folders["gpt2"]),
                    "hooks": ["layers.0"],
                    "text": {"class_path": "FileText", "init_args": {"paths": text.paths}},
                    "context_size": 16,
                    "held_out_every": 5,
                    "outlier_norm": 8,
                },
            }
        }
    )
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    source = instantiate(parsed).source
    source.setup()
    assert len(source.block("train", 0, 32, 0)) == 32
