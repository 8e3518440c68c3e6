"""Rows of an evaluation, for metrics that need more than sums, and for intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scipy.sparse import vstack
from torch import Tensor

from sae.activations.provenance import Provenance
from sae.metrics.bootstrap import Score, bootstrap_score, ratio, sums_by_cluster
from sae.metrics.code_matching import as_codes, samples_matrix

if TYPE_CHECKING:
    from sae.activations import Batch
    from sae.metrics.downstream import Downstream
    from sae_kernels.codes import Codes

# Metrics that are the sum of one column over the sum of another, see `Samples.update`.
_RATIOS = {
    "fvu": ("error", "variation"),
    "l0": ("active", "rows"),
    "cosine": ("cosine", "rows"),
    "shrinkage": ("norm_hat", "norm"),
    "relative_reconstruction_bias": ("square_hat", "inner"),
}


class Samples:
    """Activations, codes and errors of an evaluation, filled by `sae.evaluation.evaluate`.

    Args:
        max_rows: number of first rows that are stored in full. Of the other rows only a few
            numbers are stored.

    Attributes:
        rows: number of rows seen.
        downstream: the model's output with the SAE in place, for a model on text.
    """

    def __init__(self, max_rows: int = 16_384) -> None:
        self.max_rows, self.rows = max_rows, 0
        self.downstream: Downstream | None = None
        self._x: list[Tensor] = []
        self._provenance: list[Provenance] = []
        self._codes: list[Codes] = []
        self._true_codes: list[Codes] = []
        self._columns: list[dict[str, Tensor]] = []
        self._clusters: list[Tensor] = []

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
        clusters = None if block.provenance is None else block.provenance.clusters
        if clusters is None:  # every row is independent of the others
            clusters = torch.arange(self.rows, self.rows + len(block))
        self._clusters.append(clusters.cpu())
        self.rows += len(block)
        if not self._columns:
            # The mean of the first block, because the mean over all is known only at the end. The
            # variation is too large by a relative 1 / (independent rows in the block), about.
            self._mean = y.double().mean(0)
        y, y_hat = y.double(), y_hat.double()
        columns = {
            "error": (y - y_hat).square().sum(1),
            "variation": (y - self._mean).square().sum(1),
            "cosine": torch.cosine_similarity(y, y_hat, dim=-1, eps=1e-30),
            "norm": y.norm(dim=1),
            "norm_hat": y_hat.norm(dim=1),
            "square_hat": y_hat.square().sum(1),
            "inner": (y * y_hat).sum(1),
            "active": codes.l0().double(),
            "rows": torch.ones(len(y), dtype=torch.float64),
        }
        self._columns.append({name: column.cpu() for name, column in columns.items()})

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

        Their intervals resample whole documents, because tokens of one text depend on each other.
        """
        columns = {
            name: torch.cat([part[name] for part in self._columns]) for name in self._columns[0]
        }
        sums = sums_by_cluster(columns, torch.cat(self._clusters))
        return {
            name: bootstrap_score(sums[above], sums[below], statistic=ratio)
            for name, (above, below) in _RATIOS.items()
        }


def _concatenate(parts: list[Codes]) -> Codes:
    return as_codes(vstack([samples_matrix(part) for part in parts], format="csr"))
