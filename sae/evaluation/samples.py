"""Rows of an evaluation, for metrics that need more than sums, and for intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scipy.sparse import vstack
from torch import Tensor

from sae.activations.provenance import Provenance
from sae.metrics.code_matching import as_codes, samples_matrix
from sae.metrics.interval import ANY, COSINE, POSITIVE
from sae.metrics.score import MAX_CLUSTERS, Score, ratio_score

if TYPE_CHECKING:
    from sae.activations import Batch
    from sae.metrics.downstream import Downstream
    from sae_kernels.codes import Codes

# Metrics that are the sum of one column over the sum of another, see `Samples.update`, and their
# bounds.
_RATIOS = {
    "fvu": ("error", "variation", POSITIVE),
    "l0": ("active", "rows", POSITIVE),
    "cosine": ("cosine", "rows", COSINE),
    "shrinkage": ("norm_hat", "norm", POSITIVE),
    "relative_reconstruction_bias": ("square_hat", "inner", ANY),
}


class Samples:
    """Activations, codes and errors of an evaluation, filled by `sae.evaluation.evaluate`.

    Args:
        max_rows: number of first rows that are stored in full. All rows count in sums over
            clusters, which are documents or, where rows are independent, groups of rows.

    Attributes:
        rows: number of rows seen.
        downstream: the model's output with the SAE in place, for a model on text.
        training: training activations that the SAE predicts [n, d_out], if the true features are
            known.
    """

    def __init__(self, max_rows: int = 16_384) -> None:
        self.max_rows, self.rows = max_rows, 0
        self.downstream: Downstream | None = None
        self.training: Tensor | None = None
        self._x: list[Tensor] = []
        self._provenance: list[Provenance] = []
        self._codes: list[Codes] = []
        self._true_codes: list[Codes] = []
        self._sums: dict[str, Tensor] = {}
        self._cluster_of_id: dict[int, int] = {}

    def update(
        self,
        block: Batch,
        x: Tensor,
        y: Tensor,
        codes: Codes,
        y_hat: Tensor,
        true_codes: Codes | None,
    ) -> None:
        """Add a block of rows.

        Args:
            block: the block, for its provenance.
            x: what the SAE read [n, d_in].
            y: what it predicts [n, d_out]; x for an autoencoder.
            codes: its codes of the n rows.
            y_hat: its prediction of y.
            true_codes: the true codes, if they are known.
        """
        stored = slice(0, max(0, self.max_rows - self.rows))
        if stored.stop:
            self._x.append(x[stored])
            if block.provenance is not None:
                self._provenance.append(block.provenance.rows(stored).to("cpu"))
            self._codes.append(codes.rows(stored))
            if true_codes is not None:
                self._true_codes.append(true_codes.rows(stored))
        clusters = self._clusters(block)
        self.rows += len(block)
        y, y_hat = y.double(), y_hat.double()
        if not self._sums:
            self._origin = y.mean(0)
        offset = y - self._origin
        columns = {
            "error": (y - y_hat).square().sum(1),
            "offset": offset,
            "square_offset": offset.square().sum(1),
            "cosine": torch.cosine_similarity(y, y_hat, dim=-1, eps=1e-30),
            "norm": y.norm(dim=1),
            "norm_hat": y_hat.norm(dim=1),
            "square_hat": y_hat.square().sum(1),
            "inner": (y * y_hat).sum(1),
            "active": codes.l0().double(),
            "rows": torch.ones(len(y), dtype=torch.float64),
        }
        for name, column in columns.items():
            if name not in self._sums:
                shape = (MAX_CLUSTERS, *column.shape[1:])
                self._sums[name] = torch.zeros(shape, dtype=torch.float64)
            self._sums[name].index_add_(0, clusters, column.cpu())

    def _clusters(self, block: Batch) -> Tensor:
        """Return the cluster of each row of a block, int64 [n] below `MAX_CLUSTERS`."""
        ids = None if block.provenance is None else block.provenance.clusters
        if ids is None:  # every row is independent of the others
            return torch.arange(self.rows, self.rows + len(block)) % MAX_CLUSTERS
        ids, inverse = ids.cpu().unique(return_inverse=True)
        known = self._cluster_of_id
        numbers = [known.setdefault(number, len(known) % MAX_CLUSTERS) for number in ids.tolist()]
        return torch.tensor(numbers)[inverse]

    @property
    def x(self) -> Tensor:
        """The stored rows that the SAE read [n, d_in], on its device."""
        return torch.cat(self._x)

    @property
    def provenance(self) -> Provenance | None:
        """The provenance of the stored rows, on the CPU; None if the source has none."""
        return Provenance.cat(self._provenance) if self._provenance else None

    def codes(self) -> Codes:
        """Return the SAE's codes of the stored rows: ragged, float64, on the CPU."""
        return _concatenate(self._codes)

    def true_codes(self) -> Codes | None:
        """Return the true codes of the stored rows in the same form; None if they are unknown."""
        return _concatenate(self._true_codes) if self._true_codes else None

    def scores(self) -> dict[str, Score]:
        """Return fvu, l0, cosine, shrinkage and relative_reconstruction_bias over all rows.

        Their intervals are over documents, because tokens of one text depend on each other.
        """
        used = self._sums["rows"] > 0
        sums = {name: column[used] for name, column in self._sums.items()}
        # The mean over all rows is known only now: sum |y - mean|^2 from sums of y - origin.
        shift = sums["offset"].sum(0) / sums["rows"].sum()
        shifted = sums["square_offset"] - 2 * sums["offset"] @ shift
        sums["variation"] = shifted + sums["rows"] * shift.square().sum()
        return {
            name: ratio_score(sums[above], sums[below], bounds=bounds)
            for name, (above, below, bounds) in _RATIOS.items()
        }


def _concatenate(parts: list[Codes]) -> Codes:
    return as_codes(vstack([samples_matrix(part) for part in parts], format="csr"))
