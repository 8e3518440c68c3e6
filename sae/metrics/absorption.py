"""Absorption: a latent stays silent on its feature because another's latent has taken it over.

In a hierarchy, "dog" implies "animal"; a sparse code saves a latent by letting the one for "dog"
write "animal" too, so that the one for "animal" has holes. Where the true parents are known no
probe is needed. Thresholds and formulas are SAEBench 0.6.0's; its task needs a language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.metrics.code_matching import as_codes, samples_matrix
from sae_kernels.codes import Codes

FULL_COSINE = 0.025
"""Least cosine with the direction of the latent that absorbs a feature in full."""
FRACTION_COSINE = 0.1
"""Least cosine of each latent that absorbs a part."""
LEAST_SHARE = 0.4
"""Least share of the activation's projection that absorbing latents must write."""
MOST_ABSORBERS = 3
_ROWS = 1024


@dataclass(frozen=True)
class Absorption:
    """Of one feature, over the samples it is active in: each float64 [samples]."""

    full: Tensor
    """1 where its main latents are silent and a single other one writes it, else 0."""
    fraction: Tensor
    """Share of it that up to three other latents write, from 0 to 1."""


@torch.no_grad()
def absorption(
    codes: Codes, acts: Tensor, W_dec: Tensor, direction: Tensor, main: Tensor
) -> Absorption:
    """Absorption of the feature in `direction` [d_in], whose own latents are `main` int64 [m].

    codes and acts [samples, d_in] are those of samples where the feature is active. With u the unit
    direction, latent j writes a_j (d_j . u) of the projection y . u:

    full: all of `main` are silent, the latent that writes most has cosine >= .025 with u, and it
    writes at least .4 of y . u, which is positive.
    fraction: absorbers are the three latents outside of `main` that write most, each with cosine
    >= .1 and more than nothing, if together they write at least .4 of y . u; of what `main` leaves
    open they take absorbed = min(what they write, y . u - main), and the fraction is absorbed /
    (absorbed + main); 1 where `main` writes nothing, 0 where it writes all.
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
        parts.append(_of_rows(a, a * writes, projection[start : start + _ROWS], cosine, other))
    full, fraction = (torch.cat(part) for part in zip(*parts, strict=True))
    return Absorption(full, fraction)


def _of_rows(
    a: Tensor, written: Tensor, projection: Tensor, cosine: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """full and fraction of rows: a and written [rows, d_sae], projection [rows]."""
    silent = (a[:, ~other] == 0).all(1)
    most, top = written.max(1)
    enough = (projection > 0) & (most >= LEAST_SHARE * projection)
    full = silent & (cosine[top] >= FULL_COSINE) & enough

    main = written[:, ~other].sum(1)
    absorbers = torch.where(other & (cosine >= FRACTION_COSINE), written, 0.0).clamp(min=0)
    takes = absorbers.topk(min(MOST_ABSORBERS, absorbers.shape[1]), dim=1).values.sum(1)
    absorbed = torch.minimum(takes, projection - main)
    fraction = torch.where(main <= 0, 1.0, absorbed / (absorbed + main))
    none = (main >= projection) | (takes < LEAST_SHARE * projection) | (projection <= 0)
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
    """`absorption` of every feature that is some feature's parent and is active in the sample.

    Args:
        z: true codes [n, features].
        codes: the autoencoder's codes of the same samples.
        acts: activations [n, d_in].
        W_dec: [d_sae, d_in].
        truth: true directions [features, d_in].
        parents: int64 [features], -1 for none (`World.parents`).
        latents: int64 [features], the latent of each, as a matching gives it; those of features
            with -1 have no main latent and are left out.
    """
    matrix, found = samples_matrix(z), {}
    for parent in parents[parents >= 0].unique().tolist():
        rows = torch.from_numpy(matrix[:, [parent]].tocoo().row).long().sort().values
        if latents[parent] < 0 or len(rows) == 0:
            continue
        some = samples_matrix(codes)[rows.numpy()]
        found[parent] = absorption(
            as_codes(some), acts[rows], W_dec, truth[parent], latents[parent : parent + 1]
        )
    return found
