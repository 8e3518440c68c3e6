"""Activations in memory and from iterables: what is held out, what repeats, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae.activations.tensors import IterableActivations, TensorActivations
from sae.errors import UserError

ROWS = torch.arange(200.0).unsqueeze(1).repeat(1, 3)


def numbers(batch) -> list[int]:
    """Return the row numbers of a batch of `ROWS`."""
    return batch.acts["activations"][:, 0].int().tolist()


def test_the_last_rows_of_a_tensor_are_held_out_and_never_trained_on():
    source = TensorActivations(ROWS, held_out_fraction=0.1)
    assert numbers(source.block("held_out", 0, 15, seed=0)) == list(range(180, 195))
    assert numbers(source.block("held_out", 1, 15, seed=0)) == list(range(195, 200))
    assert len(source.block("held_out", 2, 15, seed=0)) == 0
    seen = [n for index in range(9) for n in numbers(source.block("train", index, 100, seed=0))]
    assert len(seen) == 900 and max(seen) < 180
    for start in range(0, 900, 180):  # five passes, each over all rows in an order of its own
        assert sorted(seen[start : start + 180]) == list(range(180))
    assert seen[:180] != seen[180:360]


def test_blocks_of_a_tensor_depend_on_index_and_seed_only():
    one, other = TensorActivations(ROWS), TensorActivations(ROWS)
    for index in (7, 2):
        expected = numbers(one.block("train", index, 64, seed=3))
        assert expected == numbers(other.block("train", index, 64, seed=3))
    assert numbers(one.block("train", 2, 64, seed=4)) != expected


def test_leading_dimensions_count_rows():
    source = TensorActivations({"a": ROWS.view(10, 20, 3), "b": ROWS.double().view(200, 3)})
    assert source.rows == 200 and source.widths == {"a": 3, "b": 3}
    batch = source.block("train", 0, 50, seed=0)
    assert torch.equal(batch.acts["a"], batch.acts["b"]) and batch.acts["b"].dtype == torch.float32
    assert batch.provenance is None


def test_numpy_arrays_are_activations():
    assert TensorActivations(np.ones((40, 3), dtype=np.float32)).rows == 40


def chunks():
    return ROWS.split(17)


@pytest.mark.parametrize("make", [lambda: chunks, lambda: list(chunks())], ids=["function", "list"])
def test_the_first_rows_of_a_stream_are_held_out_and_the_rest_repeats_in_order(make):
    source = IterableActivations(make(), held_out_tokens=20)
    source.setup()
    assert source.widths == {"activations": 3}
    assert numbers(source.block("held_out", 0, 100, seed=0)) == list(range(20))
    seen = [n for index in range(6) for n in numbers(source.block("train", index, 90, seed=0))]
    assert seen == list(range(20, 200)) * 3


def test_a_fresh_stream_reaches_any_block():
    straight = IterableActivations(chunks, held_out_tokens=20)
    straight.setup()
    blocks = [numbers(straight.block("train", index, 70, seed=0)) for index in range(5)]
    resumed = IterableActivations(chunks, held_out_tokens=20)
    resumed.setup()
    assert numbers(resumed.block("train", 4, 70, seed=0)) == blocks[4]
    assert numbers(resumed.block("train", 1, 70, seed=0)) == blocks[1], "going back starts again"


def test_a_generator_is_read_once():
    source = IterableActivations(iter(chunks()), held_out_tokens=20)
    source.setup()
    assert numbers(source.block("train", 0, 180, seed=0)) == list(range(20, 200))
    with pytest.raises(UserError, match="ended after 200 rows"):
        source.block("train", 1, 180, seed=0)


def test_tensors_of_one_stream_have_the_same_hooks_and_widths():
    source = IterableActivations([ROWS[:30], ROWS[:, :2]], held_out_tokens=20)
    source.setup()
    with pytest.raises(UserError, match="differ from the first"):
        source.block("train", 0, 60, seed=0)


def test_rows_of_a_stream_that_are_not_finite_are_refused():
    broken = ROWS.clone()
    broken[150, 1] = float("inf")
    source = IterableActivations(lambda: broken.split(17), held_out_tokens=20)
    source.setup()
    with pytest.raises(UserError, match="1 rows in activations that are NaN or infinite"):
        source.block("train", 0, 180, seed=0)
