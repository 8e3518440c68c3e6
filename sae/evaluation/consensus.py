"""Consensus: an SAE of the latents that several seeds share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.metrics.seed_consistency import SeedMatching, match_seeds_signed


@torch.no_grad()
def consensus(
    saes: Sequence[SAE],
    *,
    matching: SeedMatching | None = None,
    threshold: float = 0.7,
    at_least: int | None = None,
) -> SAE:
    """Return an SAE of the latents that enough seeds share.

    A latent of one seed and its partners in other seeds make one latent of the result if every two
    of them exceed `threshold` in signed decoder cosine and in encoder cosine. Its decoder row has
    their mean direction and their mean norm. Encoder weights, bias and threshold are means, and so
    are b_dec and all parameters that do not belong to one latent. k stays as it is, or becomes the
    number of latents if that is smaller. Latents are in the order of the first seed that has them.
    The result's `stability` is the mean decoder cosine among the seeds' versions of each latent.

    Args:
        saes: SAEs that differ only in their seed.
        matching: `match_seeds_signed` of their decoders, if it is known already.
        threshold: smallest cosine; "shared" latents of Paulo & Belrose (arXiv 2501.16615) are above
            0.7.
        at_least: number of seeds that must have a latent; by default more than half.

    Raises:
        UserError: no latent is shared, the SAEs are of different kinds, or the index of a latent
            has a meaning: GroupMax, and sites whose latents fall into groups.
    """
    seeds = len(saes)
    if at_least is None:
        at_least = seeds // 2 + 1
    _check(saes, at_least)
    if matching is None:
        matching = match_seeds_signed([sae.W_dec for sae in saes])
    D = [normalize(sae.W_dec.double().cpu()) for sae in saes]
    E = [normalize(sae.W_enc.double().cpu().T) for sae in saes]
    latents = _clusters(matching, D, E, threshold, at_least)
    if not len(latents):
        raise UserError(
            f"no latent is shared by {at_least} of {seeds} seeds at cosine {threshold}; train for "
            "longer, or choose a lower threshold"
        )
    inside = (latents >= 0).double()
    size = inside.sum(1)

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        """Return the mean of tensors [d_sae, ...] over the seeds that have each latent."""
        total = torch.zeros((), dtype=torch.float64)
        for number, tensor in enumerate(tensors):
            has = inside[:, number].view(-1, *[1] * (tensor.dim() - 1))
            total = total + has * tensor.double().cpu()[latents[:, number].clamp(min=0)]
        return total / size.view(-1, *[1] * (total.dim() - 1))

    first = saes[0]
    agreed = SAE(
        first.d_in,
        first.sparsity.with_d_sae(len(latents)),
        site=first.site,
        d_out=first.d_out,
        dtype=first.b_dec.dtype,
        metadata=_metadata(saes, threshold, at_least),
    )
    direction = mean(D)
    state, states = {}, [sae.state_dict() for sae in saes]
    for name in agreed.state_dict():
        tensors = [one_state[name] for one_state in states]
        if name == "W_dec":
            norms = mean([tensor.double().norm(dim=1) for tensor in tensors])
            state[name] = normalize(direction) * norms[:, None]
        elif name == "W_enc":
            state[name] = mean([tensor.T for tensor in tensors]).T
        elif tensors[0].shape[:1] == (first.d_sae,) and name not in ("b_dec", "W_skip"):
            state[name] = mean(tensors)
        else:
            state[name] = torch.stack([tensor.double().cpu() for tensor in tensors]).mean(0)
    agreed.load_state_dict(state)
    agreed.project()
    # |sum of m unit vectors|^2 is m plus twice the sum of the cosines of all pairs.
    agreed.stability = ((direction.norm(dim=1) * size).square() - size) / (size * (size - 1))
    return agreed


def _check(saes: Sequence[SAE], at_least: int) -> None:
    if len(saes) < 2:
        raise UserError("a consensus needs at least two SAEs")
    first = saes[0]
    kinds = {str((sae.d_in, sae.d_out, sae.site.to_dict(), sae.sparsity.to_dict())) for sae in saes}
    if len(kinds) > 1:
        raise UserError("a consensus needs SAEs that differ only in their seed")
    if not 2 <= at_least <= len(saes):
        raise UserError(f"at_least={at_least}; give 2 to {len(saes)}, the number of SAEs")
    if first.site.groups > 1 or not first.sparsity.permutable:
        kind = first.sparsity if first.site.groups == 1 else first.site
        raise UserError(
            f"the index of a latent has a meaning in {type(kind).__name__}, so it has no consensus"
        )


def _clusters(
    matching: SeedMatching, D: list[Tensor], E: list[Tensor], threshold: float, at_least: int
) -> Tensor:
    """Return the index of each shared latent in each seed, int64 [shared, seeds]; -1 for none.

    A cluster starts as a latent of one seed and its partners that agree with it. While not all of
    them agree with one another, the one that agrees with the fewest is removed.

    Args:
        matching: matching of the decoders.
        D: normalised decoder rows [d_sae, d_out] of each seed.
        E: normalised encoder rows [d_sae, d_in] of each seed.
        threshold: smallest cosine of latents that agree.
        at_least: smallest size of a cluster.
    """
    seeds, d_sae = len(D), len(D[0])
    used = torch.zeros(seeds, d_sae, dtype=torch.bool)
    clusters = []
    # A latent that `at_least` seeds have is in at least one of these first seeds.
    for s in range(seeds - at_least + 1):
        at = matching.partners[s]
        agree = torch.ones(seeds, seeds, d_sae, dtype=torch.bool)
        for t in range(seeds):
            for u in range(t):
                cosines = [(rows[t][at[t]] * rows[u][at[u]]).sum(1) for rows in (D, E)]
                agree[t, u] = agree[u, t] = torch.stack(cosines).amin(0) > threshold
        inside = agree[s] & ~used.gather(1, at)
        while True:
            agreeing = (agree & inside).sum(1)
            disputed = inside & (agreeing < inside.sum(0))
            unfinished = disputed.any(0)
            if not unfinished.any():
                break
            # On a tie the last seed is removed.
            worst = torch.where(disputed, agreeing, seeds + 1).flip(0).argmin(0)
            inside[seeds - 1 - worst[unfinished], unfinished.nonzero().flatten()] = False
        shared = inside & (inside.sum(0) >= at_least)
        used[torch.arange(seeds)[:, None].expand_as(at)[shared], at[shared]] = True
        clusters.append(torch.where(shared, at, -1)[:, shared.any(0)].T)
    return torch.cat(clusters)


def _metadata(saes: Sequence[SAE], threshold: float, at_least: int) -> dict[str, Any]:
    """Return the metadata that all SAEs have in common, and what they were."""
    first, *others = [sae.metadata for sae in saes]
    common = {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
    return common | {
        "consensus_of": [sae.metadata.get("run") for sae in saes],
        "seeds": [sae.metadata.get("seed") for sae in saes],
        "threshold": threshold,
        "at_least": at_least,
    }
