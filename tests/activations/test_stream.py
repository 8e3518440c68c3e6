"""Stream: batch t is a pure function of (settings, seed, t)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch

from sae.activations import Batch, ModelActivations, Source, Stream, text_provenance
from sae.errors import UserError

SIZES = {"batch_size": 8, "block_batches": 4, "seed": 3}


class Numbers(Source):
    """Row r of block n is n * size + r; held_out ends after `rows` rows."""

    def __init__(self, rows: int = 75) -> None:
        self.widths = {"x": 2}
        self.rows = rows
        self.asked: list[int] = []

    def block(self, split: str, index: int, size: int, seed: int) -> Batch:
        self.asked.append(index)
        first = index * size
        last = first + size if split == "train" else max(first, min(first + size, self.rows))
        n = torch.arange(first, last)
        return Batch({"x": torch.stack([n, -n], 1).float()}, text_provenance(n, n, n))


def tokens(batches: Iterator[Batch], n: int | None = None) -> list[list[int]]:
    return [batch.provenance["token"].tolist() for batch in islice(batches, n)]


@pytest.fixture(params=[False, True], ids=["direct", "overlap"])
def overlap(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_every_row_of_a_block_is_handed_out_once_in_shuffled_order(overlap: bool) -> None:
    batches = tokens(iter(Stream(Numbers(), **SIZES, overlap=overlap)), 12)
    orders = []
    for block in range(3):
        rows = sum(batches[4 * block : 4 * block + 4], [])
        assert sorted(rows) == list(range(32 * block, 32 * block + 32))
        orders.append(tuple(r - 32 * block for r in rows))
    assert len(set(orders)) == 3 and tuple(range(32)) not in orders
    other = Stream(Numbers(), **{**SIZES, "seed": 4})
    assert tokens(iter(other), 12) != batches


def test_shuffling_keeps_acts_and_provenance_of_a_row_together() -> None:
    for batch in islice(Stream(Numbers(), **SIZES), 6):
        assert torch.equal(batch.acts["x"][:, 0], batch.provenance["token"].float())
        assert torch.equal(batch.provenance["document"], batch.provenance["token"])


def test_batches_have_their_pinned_values() -> None:
    # Resumed runs and published results depend on this order, so it must not change.
    assert tokens(iter(Stream(Numbers(), **SIZES)), 1) == [[16, 30, 22, 15, 10, 17, 31, 23]]


@pytest.mark.parametrize("at", [0, 1, 3, 4, 5, 11])
def test_resume_continues_after_the_last_batch(overlap: bool, at: int) -> None:
    whole = tokens(iter(Stream(Numbers(), **SIZES)), 14)
    first = Stream(Numbers(), **SIZES, overlap=overlap)
    iterator = iter(first)
    tokens(iterator, at)
    state = first.state_dict()
    iterator.close()
    second = Stream(Numbers(), **SIZES, overlap=overlap)
    second.load_state_dict(state)
    assert tokens(iter(second), 14 - at) == whole[at:]
    third = Stream(Numbers(), **SIZES)
    third.seek(at)
    assert tokens(iter(third), 14 - at) == whole[at:]


def test_resume_refuses_another_seed() -> None:
    state = Stream(Numbers(), **SIZES).state_dict()
    with pytest.raises(UserError, match="seed=5 differs from seed=3"):
        Stream(Numbers(), **{**SIZES, "seed": 5}).load_state_dict(state)


def test_seek_within_an_iteration() -> None:
    stream = Stream(Numbers(), **SIZES)
    iterator = iter(stream)
    first = tokens(iterator, 3)
    stream.seek(0)
    assert tokens(iterator, 3) == first


def test_iteration_ends_after_batches_and_the_next_continues(overlap: bool) -> None:
    whole = tokens(iter(Stream(Numbers(), **SIZES)), 12)
    source = Numbers()
    stream = Stream(source, **SIZES, batches=6, overlap=overlap)
    assert len(stream) == 6
    assert tokens(iter(stream)) == whole[:6] and source.asked == [0, 1]
    assert tokens(iter(stream)) == whole[6:]
    with pytest.raises(TypeError):
        len(Stream(Numbers(), **SIZES))


def test_held_out_iterates_in_order_from_the_start(overlap: bool) -> None:
    stream = Stream(Numbers(), split="held_out", **SIZES, overlap=overlap)
    rows = [list(range(i, min(i + 8, 75))) for i in range(0, 75, 8)]
    assert tokens(iter(stream)) == rows
    assert tokens(iter(stream), 3) == rows[:3]
    assert tokens(iter(stream)) == rows


def test_held_out_blocks_may_be_short_before_the_end() -> None:
    class Gaps(Numbers):
        def block(self, split: str, index: int, size: int, seed: int) -> Batch:
            block = super().block(split, index, size, seed)
            return block.rows(slice(0, 13 if index == 0 else None))

    batches = tokens(iter(Stream(Gaps(), split="held_out", **SIZES)))
    assert sum(batches, []) == [*range(13), *range(32, 75)]
    assert [len(batch) for batch in batches] == [8, 5, 8, 8, 8, 8, 8, 3]


def test_overlap_makes_the_next_block_in_the_background() -> None:
    source = Numbers()
    made = threading.Event()
    block = source.block

    def slow(split: str, index: int, size: int, seed: int) -> Batch:
        if index == 1:
            made.set()
        return block(split, index, size, seed)

    source.block = slow
    iterator = iter(Stream(source, **SIZES, overlap=True))
    next(iterator)
    assert made.wait(5)
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("harvest")]


def test_error_is_raised_when_its_block_is_due(overlap: bool) -> None:
    class Failing(Numbers):
        def block(self, split: str, index: int, size: int, seed: int) -> Batch:
            if index == 1:
                raise UserError("block 1 is bad")
            return super().block(split, index, size, seed)

    iterator = iter(Stream(Failing(), **SIZES, overlap=overlap))
    assert len(tokens(iterator, 4)) == 4
    with pytest.raises(UserError, match="block 1 is bad"):
        next(iterator)


@pytest.mark.parametrize("name", ["batch_size", "block_batches"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=0 must be at least 1"):
        Stream(Numbers(), **{**SIZES, name: 0})


def test_model_source_resumes_and_overlaps_bit_for_bit(
    make_source: Callable[..., ModelActivations],
) -> None:
    first = Stream(make_source("gpt2"), **SIZES)
    whole = list(islice(first, 14))
    state = first.state_dict()
    for stream in (
        Stream(make_source("gpt2"), **SIZES),
        Stream(make_source("gpt2"), **SIZES, overlap=True),
    ):
        stream.load_state_dict({**state, "position": 6})
        iterator = iter(stream)
        for batch, expected in zip(islice(iterator, 8), whole[6:], strict=True):
            assert torch.equal(batch.provenance["token"], expected.provenance["token"])
            assert torch.equal(batch.acts["layers.1"], expected.acts["layers.1"])
        iterator.close()


def test_to_moves_every_tensor_of_a_batch() -> None:
    batch = next(iter(Stream(Numbers(), **SIZES))).to("meta")
    assert {t.device.type for t in batch.tensors()} == {"meta"}
    assert len(batch) == 8


def test_first_block_is_made_once(make_source, monkeypatch):
    source = make_source()
    made: list[int] = []
    block = source.block

    def counting(split, index, size, seed):
        made.append(index)
        return block(split, index, size, seed)

    plain = [
        batch.provenance["token"].tolist()
        for batch in Stream(source, batch_size=8, block_batches=2, batches=4)
    ]
    monkeypatch.setattr(source, "block", counting)
    stream = Stream(source, batch_size=8, block_batches=2, batches=4)
    assert len(stream.first_block()) == 16
    assert [batch.provenance["token"].tolist() for batch in stream] == plain
    assert made == [0, 1]
