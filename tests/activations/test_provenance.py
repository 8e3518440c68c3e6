"""Batches and their optional provenance, and what a source offers by default."""

from __future__ import annotations

import pytest
import torch

from sae.activations import Batch, Provenance, Source
from sae.worlds import NonlinearMixing, SparseSuperposition


class Plain(Source):
    """Two rows of zeros in every block."""

    def __init__(self) -> None:
        self.widths = {"x": 3}

    def block(self, split, index, size, seed) -> Batch:
        return Batch({"x": torch.zeros(2, 3)})


@pytest.fixture
def batch() -> Batch:
    columns = {"image": torch.tensor([0, 0, 1, 1, 2]), "patch": torch.tensor([0, 1, 0, 1, 0])}
    acts = {"x": torch.arange(10.0).view(5, 2), "y": torch.arange(5.0)[:, None]}
    return Batch(acts, Provenance(columns, cluster="image"))


def test_rows_keep_acts_and_provenance_together(batch: Batch) -> None:
    index = torch.tensor([4, 1])
    rows = batch.rows(index)
    assert torch.equal(rows.acts["x"], batch.acts["x"][index])
    assert rows.provenance is not None
    assert rows.provenance["image"].tolist() == [2, 0]
    assert rows.provenance["patch"].tolist() == [0, 1]
    assert rows.provenance.clusters is not None and rows.provenance.clusters.tolist() == [2, 0]


def test_split_gives_consecutive_views_and_cat_joins_them(batch: Batch) -> None:
    parts = batch.split(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert parts[1].acts["x"].data_ptr() == batch.acts["x"][2:].data_ptr()
    joined = Provenance.cat([part.provenance for part in parts if part.provenance])
    assert joined.cluster == "image" and len(joined) == 5
    for name in ("image", "patch"):
        assert torch.equal(joined[name], batch.provenance[name])


def test_to_moves_every_tensor(batch: Batch) -> None:
    assert {tensor.device.type for tensor in batch.to("meta").tensors()} == {"meta"}
    assert len(list(batch.tensors())) == 4


def test_unknown_column_error_lists_the_columns(batch: Batch) -> None:
    with pytest.raises(KeyError, match="no column 'token'; it has image, patch"):
        batch.provenance["token"]


def test_batch_without_provenance_has_rows_and_splits() -> None:
    batch = Batch({"x": torch.zeros(3, 2)})
    assert batch.rows(slice(1, None)).provenance is None
    assert [len(part) for part in batch.split(2)] == [2, 1]
    assert batch.to("meta").device.type == "meta" and len(list(batch.tensors())) == 1


def test_source_offers_nothing_unless_it_says_so() -> None:
    source = Plain()
    assert source.known_features() is None
    assert source.text_model() is None
    assert source.labelled_network() is None
    assert source.random_weights_twin() is None
    assert source.activation_dtype == torch.float32
    assert source.provenance_columns == ()


def test_worlds_offer_their_features() -> None:
    world = SparseSuperposition(d_in=4, n_features=8, mean_active=2)
    features = world.known_features()
    assert features.truth.shape == (8, 4) and features.parents is None
    assert world.text_model() is None and world.labelled_network() is None
    mixing = NonlinearMixing(d_in=4)
    assert mixing.labelled_network() is mixing and mixing.known_features() is mixing
