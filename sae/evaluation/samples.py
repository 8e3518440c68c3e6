"""What an evaluation read, row by row: for figures that need more than sums, and for intervals."""

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

# Figures that are one sum over rows by another: the columns below.
_RATIOS = {
    "fvu": ("error", "spread"),
    "l0": ("active", "rows"),
    "cosine": ("cosine", "rows"),
    "shrinkage": ("norm_hat", "norm"),
    "relative_reconstruction_bias": ("square_hat", "inner"),
}


class Sample:
    """Filled by `sae.evaluation.evaluate.evaluate`.

    Args:
        most: rows that are kept whole, the first ones. Of all rows a few numbers are.

    Attributes:
        x: what was read of the rows kept, [n, d_in], on the device of the autoencoder.
        provenance: where they came from, on the CPU; None if the source does not say.
        spliced: of a model on text.
    """

    def __init__(self, most: int = 16_384) -> None:
        self.most, self.rows = most, 0
        self.spliced: Downstream | None = None
        self._kept: list[Tensor] = []
        self._provenance: list[Provenance] = []
        self._codes: list[Codes] = []
        self._truth: list[Codes] = []
        self._columns: list[dict[str, Tensor]] = []
        self._clusters: list[Tensor] = []

    def update(
        self, block: Batch, x: Tensor, y: Tensor, codes: Codes, y_hat: Tensor, z: Codes | None
    ) -> None:
        """Add a block: x [n, d_in] was read for y [n, d_out]; z are its true codes if there are."""
        room = slice(0, max(0, self.most - self.rows))
        if room.stop:
            self._kept.append(x[room])
            if block.provenance is not None:
                self._provenance.append(block.provenance.rows(room).to("cpu"))
            self._codes.append(codes.rows(room))
            if z is not None:
                self._truth.append(z.rows(room))
        clusters = None if block.provenance is None else block.provenance.clusters
        if clusters is None:  # every row is independent of the others
            clusters = torch.arange(self.rows, self.rows + len(block))
        self._clusters.append(clusters.cpu())
        self.rows += len(block)
        if not self._columns:
            # Of the first block: the mean of all is known at the end only. It makes `spread` larger
            # by about as much as the block's mean is off, a share of 1 / its independent rows.
            self._centre = y.double().mean(0)
        y, y_hat = y.double(), y_hat.double()
        columns = {
            "error": (y - y_hat).square().sum(1),
            "spread": (y - self._centre).square().sum(1),
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
        return torch.cat(self._kept)

    @property
    def provenance(self) -> Provenance | None:
        return Provenance.cat(self._provenance) if self._provenance else None

    def codes(self) -> Codes:
        """Of the rows kept, ragged, float64, on the CPU."""
        return _joined(self._codes)

    def true_codes(self) -> Codes | None:
        """The same of the truth; None where it is not known."""
        return _joined(self._truth) if self._truth else None

    def scores(self) -> dict[str, Score]:
        """fvu, l0, cosine, shrinkage and relative_reconstruction_bias of all rows, their intervals
        under resampling of whole documents: tokens of one text hang together."""
        columns = {
            name: torch.cat([part[name] for part in self._columns]) for name in self._columns[0]
        }
        sums = sums_by_cluster(columns, torch.cat(self._clusters))
        return {
            name: bootstrap_score(sums[above], sums[below], statistic=ratio)
            for name, (above, below) in _RATIOS.items()
        }


def _joined(parts: list[Codes]) -> Codes:
    return as_codes(vstack([samples_matrix(part) for part in parts], format="csr"))
