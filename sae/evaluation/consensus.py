"""The dictionary that several seeds agree on, as an autoencoder of its own."""

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
    """An autoencoder of the latents that enough of `saes` have; they differ in their seed only.

    A latent of one seed and its partners in others make one latent of the result where every two
    of them are above `threshold` in signed decoder and in encoder cosine. Its direction is the
    mean of theirs, as long as theirs are on average; its encoder weights, bias and threshold are
    means, and so are b_dec and whatever else is not of one latent. k is as it was, or the number of
    latents where that is less. Latents come in the order of the first seed that has them. The
    result's `stability` is the mean decoder cosine within each latent's own.

    Args:
        matching: `match_seeds_signed` of their decoders, where it is known already.
        threshold: of cosines; "shared" latents of Paulo & Belrose (arXiv 2501.16615) are above 0.7.
        at_least: how many seeds must have a latent; more than half of them when left out.

    Raises UserError where no latent is shared, for autoencoders of different kinds, and where a
    latent's place means something: GroupMax, and sites whose latents fall into groups.
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
            "longer, or take a lower threshold"
        )
    inside = (latents >= 0).double()
    size = inside.sum(1)

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        """Over the seeds that have each latent, of tensors [d_sae, ...]."""
        total = 0.0
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
        tensors = [own[name] for own in states]
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
    # |sum of m unit vectors|^2 is m, and twice the cosine of every two of them.
    agreed.stability = ((direction.norm(dim=1) * size).square() - size) / (size * (size - 1))
    return agreed


def _check(saes: Sequence[SAE], at_least: int) -> None:
    if len(saes) < 2:
        raise UserError("a consensus needs two autoencoders or more")
    first = saes[0]
    kinds = {str((sae.d_in, sae.d_out, sae.site.to_dict(), sae.sparsity.to_dict())) for sae in saes}
    if len(kinds) > 1:
        raise UserError("a consensus is of autoencoders that differ in their seed only")
    if not 2 <= at_least <= len(saes):
        raise UserError(f"at_least={at_least}; give 2 to {len(saes)}, the number of autoencoders")
    if first.site.groups > 1 or not first.sparsity.permutable:
        kind = first.sparsity if first.site.groups == 1 else first.site
        raise UserError(
            f"{type(kind).__name__} goes by the place of a latent, so there is no consensus of it"
        )


def _clusters(
    matching: SeedMatching, D: list[Tensor], E: list[Tensor], threshold: float, at_least: int
) -> Tensor:
    """int64 [shared latents, seeds]: which latent of each seed is each; -1 where it has none.

    Around each latent of a seed, its partners that agree with it; of those that do not all agree
    with one another, whichever agrees with fewest goes first. D, E: unit rows [d_sae, d] each.
    """
    seeds, d_sae = len(D), len(D[0])
    used = torch.zeros(seeds, d_sae, dtype=torch.bool)
    found = []
    # Whatever at_least have, one of the first seeds has.
    for s in range(seeds - at_least + 1):
        at = matching.partners[s]
        agree = torch.ones(seeds, seeds, d_sae, dtype=torch.bool)
        for t in range(seeds):
            for u in range(t):
                cosines = [(rows[t][at[t]] * rows[u][at[u]]).sum(1) for rows in (D, E)]
                agree[t, u] = agree[u, t] = torch.stack(cosines).amin(0) > threshold
        inside = agree[s] & ~used.gather(1, at)
        while True:
            friends = (agree & inside).sum(1)
            lacking = inside & (friends < inside.sum(0))
            some = lacking.any(0)
            if not some.any():
                break
            # Of equals the last seed.
            worst = torch.where(lacking, friends, seeds + 1).flip(0).argmin(0)
            inside[seeds - 1 - worst[some], some.nonzero().flatten()] = False
        kept = inside & (inside.sum(0) >= at_least)
        used[torch.arange(seeds)[:, None].expand_as(at)[kept], at[kept]] = True
        found.append(torch.where(kept, at, -1)[:, kept.any(0)].T)
    return torch.cat(found)


def _metadata(saes: Sequence[SAE], threshold: float, at_least: int) -> dict[str, Any]:
    """What all have in common, and what they were."""
    first, *others = [sae.metadata for sae in saes]
    common = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    return common | {
        "consensus_of": [sae.metadata.get("run") for sae in saes],
        "seeds": [sae.metadata.get("seed") for sae in saes],
        "threshold": threshold,
        "at_least": at_least,
    }
