from __future__ import annotations

from sae.activations import Stream
from sae.lightning.datamodule import BatchGroups
from sae.worlds import SparseSuperposition


def test_batch_groups_hand_out_the_stream_in_order():
    source = SparseSuperposition(d_in=4, n_features=8, mean_active=2.0)
    source.setup()
    make = lambda: Stream(source, batch_size=3, block_batches=2, batches=7)
    want = [next(iter(batch.acts.values())) for batch in make()]
    calls = BatchGroups(make(), 3)
    got = list(calls)
    assert [len(some) for some in got] == [3, 3, 1] and len(calls) == 3
    flat = [next(iter(batch.acts.values())) for some in got for batch in some]
    assert all((a == b).all() for a, b in zip(flat, want, strict=True))


def test_batch_groups_resume_after_the_last_list():
    source = SparseSuperposition(d_in=4, n_features=8, mean_active=2.0)
    source.setup()
    make = lambda: BatchGroups(Stream(source, batch_size=3, block_batches=2, batches=7), 3)
    straight = make()
    lists = iter(straight)
    next(lists)
    state = straight.state_dict()
    rest = [next(iter(batch.acts.values())) for some in lists for batch in some]
    resumed = make()
    resumed.load_state_dict(state)
    again = [next(iter(batch.acts.values())) for some in resumed for batch in some]
    assert len(rest) == 4 and all((a == b).all() for a, b in zip(again, rest, strict=True))
