from __future__ import annotations

from sae.activations import Stream
from sae.lightning.datamodule import BatchGroups
from sae.worlds import SparseSuperposition


def test_batch_groups_hand_out_the_stream_in_order():
    source = SparseSuperposition(d_in=4, n_features=8, mean_active=2.0)
    source.setup()
    new_stream = lambda: Stream(source, batch_size=3, block_batches=2, batches=7)
    expected = [next(iter(batch.acts.values())) for batch in new_stream()]
    groups = BatchGroups(new_stream(), 3)
    lists = list(groups)
    assert [len(batches) for batches in lists] == [3, 3, 1] and len(groups) == 3
    acts = [next(iter(batch.acts.values())) for batches in lists for batch in batches]
    assert all((a == b).all() for a, b in zip(acts, expected, strict=True))


def test_batch_groups_resume_after_the_last_list():
    source = SparseSuperposition(d_in=4, n_features=8, mean_active=2.0)
    source.setup()
    new_groups = lambda: BatchGroups(Stream(source, batch_size=3, block_batches=2, batches=7), 3)
    uninterrupted = new_groups()
    lists = iter(uninterrupted)
    next(lists)
    state = uninterrupted.state_dict()
    expected = [next(iter(batch.acts.values())) for batches in lists for batch in batches]
    resumed = new_groups()
    resumed.load_state_dict(state)
    acts = [next(iter(batch.acts.values())) for batches in resumed for batch in batches]
    assert len(expected) == 4 and all((a == b).all() for a, b in zip(acts, expected, strict=True))
