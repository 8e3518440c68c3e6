"""Feature absorption: a latent is silent on its feature because another latent writes it instead.

In a hierarchy, "dog" implies "animal". A sparse code saves a latent if the latent for "dog" writes
"animal" too, so that the latent for "animal" stays silent on dogs. Here the true parents are known,
so no probe is needed. Thresholds and formulas are those of SAEBench 0.6.0, where the task needs a
language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.metrics.code_matching import as_codes, samples_matrix
from sae_kernels.codes import Codes

FULL_COSINE = 0.025
"""Smallest cosine with the feature of a latent that absorbs it in full."""
FRACTION_COSINE = 0.1
"""Smallest cosine with the feature of a latent that absorbs a part of it."""
MIN_SHARE = 0.4
"""Smallest share of the activation's projection that absorbing latents must write."""
MAX_ABSORBERS = 3
_ROWS = 1024


@dataclass(frozen=True)
class Absorption:
    """Absorption of one feature on the samples in which it is active, float64 [samples] each."""

    full: Tensor
    """1 where the feature's main latents are silent and a single other latent writes it, else 0."""
    fraction: Tensor
    """Share of the feature that up to three other latents write, from 0 to 1."""


@torch.no_grad()
def absorption(
    codes: Codes, acts: Tensor, W_dec: Tensor, direction: Tensor, main: Tensor
) -> Absorption:
    """Compute the absorption of one feature.

    With u the unit direction, latent j writes a_j (d_j . u) of the projection y . u.

    - full: all latents in `main` are silent, the latent that writes most has cosine >= 0.025 with
      u, and it writes at least 0.4 of y . u, which is positive.
    - fraction: the absorbers are the three latents outside `main` that write most, each with cosine
      >= 0.1 and a positive contribution, if together they write at least 0.4 of y . u. Then
      absorbed = min(sum of their contributions, y . u - contribution of `main`), and the fraction
      is absorbed / (absorbed + contribution of `main`): 1 if `main` writes nothing, 0 if it writes
      everything.

    Args:
        codes: codes of the samples in which the feature is active.
        acts: activations of these samples [samples, d_in].
        W_dec: decoder [d_sae, d_in].
        direction: direction of the feature [d_in].
        main: the latents of the feature, int64 [m].
    """
    W_dec, u = W_dec.double().cpu(), torch.nn.functional.normalize(direction.double().cpu(), dim=0)
    writes = W_dec @ u
    cosine = writes / W_dec.norm(dim=1).clamp_min(1e-30)
    other = torch.ones(len(W_dec), dtype=torch.bool)
    other[main.cpu()] = False
    matrix, projection = samples_matrix(codes), acts.double().cpu() @ u
    parts = []
    for start in range(0, len(acts), _ROWS):
        a = torch.from_numpy(matrix[start : start + _ROWS].toarray())
        parts.append(
            _absorption_of_rows(a, a * writes, projection[start : start + _ROWS], cosine, other)
        )
    full, fraction = (torch.cat(part) for part in zip(*parts, strict=True))
    return Absorption(full, fraction)


def _absorption_of_rows(
    a: Tensor, written: Tensor, projection: Tensor, cosine: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """Return full and fraction [rows] for a and written [rows, d_sae] and projection [rows]."""
    silent = (a[:, ~other] == 0).all(1)
    most, top = written.max(1)
    enough = (projection > 0) & (most >= MIN_SHARE * projection)
    full = silent & (cosine[top] >= FULL_COSINE) & enough

    main = written[:, ~other].sum(1)
    absorbers = torch.where(other & (cosine >= FRACTION_COSINE), written, 0.0).clamp(min=0)
    takes = absorbers.topk(min(MAX_ABSORBERS, absorbers.shape[1]), dim=1).values.sum(1)
    absorbed = torch.minimum(takes, projection - main)
    fraction = torch.where(main <= 0, 1.0, absorbed / (absorbed + main))
    none = (main >= projection) | (takes < MIN_SHARE * projection) | (projection <= 0)
    return full.double(), fraction.masked_fill(none, 0.0)


@torch.no_grad()
def absorption_of_parents(
    z: Tensor | Codes,
    codes: Codes,
    acts: Tensor,
    W_dec: Tensor,
    truth: Tensor,
    parents: Tensor,
    latents: Tensor,
) -> dict[int, Absorption]:
    """Compute `absorption` for every feature that is a parent and is active in some sample.

    Args:
        z: true codes [n, features].
        codes: the SAE's codes of the same samples.
        acts: activations [n, d_in].
        W_dec: decoder [d_sae, d_in].
        truth: true directions [features, d_in].
        parents: int64 [features], -1 for none (`World.parents`).
        latents: the latent matched to each feature, int64 [features]; features with -1 have no
            main latent and are left out.

    Returns:
        The absorption of each parent, by its index.
    """
    matrix, results = samples_matrix(z), {}
    for parent in parents[parents >= 0].unique().tolist():
        rows = torch.from_numpy(matrix[:, [parent]].tocoo().row).long().sort().values
        if latents[parent] < 0 or len(rows) == 0:
            continue
        active_codes = samples_matrix(codes)[rows.numpy()]
        results[parent] = absorption(
            as_codes(active_codes), acts[rows], W_dec, truth[parent], latents[parent : parent + 1]
        )
    return results
