"""Resampling: dead latents restart on tokens that the SAE reconstructs badly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae.autoencoder import SAE
from sae.errors import UserError

# Kinds of optimiser state that are copies of the parameter; all others are moments.
COPIES = ("master", "x", "z")


class Resampler(nn.Module):
    """Neuron resampling (Bricken et al. 2023, appendix), on the batch of the step.

    Every `every` steps each dead latent is given a token of its own, drawn from the batch with
    probability proportional to the square of the token's squared error. Its decoder row becomes the
    direction of that token (x - b_dec), its encoder column the same times ENCODER_NORM times the
    mean norm of live encoder columns, b_enc 0, and its own parameters what they started with. Where
    what is predicted is not what is read, the encoder takes the direction of x off its batch mean
    (which b_enc takes off again, as at the start) and the decoder that of the residual; with
    groups of latents, only what a group reads and may write.
    No token is drawn twice: twins would stay twins. Where fewer tokens have an error than latents
    are dead, those silent for longest go first and the others wait.

    Args:
        d_sae: number of latents.
        every: steps between two times.
        last: no latent is resampled after this step.
        seed: with the step, decides the draw.

    Raises UserError where `every` is beyond `last`.
    """

    ENCODER_NORM = 0.2

    def __init__(self, d_sae: int, *, every: int, last: float, seed: int = 0) -> None:
        super().__init__()
        if every > last:
            raise UserError(
                f"model.resample_every={every} never comes: the learning rate falls from step "
                f"{last:.0f} on (model.optim.decay); lower it"
            )
        self.every, self.last, self.seed = every, last, seed
        self.register_buffer("waiting", torch.zeros(d_sae, dtype=torch.bool))
        self.register_buffer("resampled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("revived", torch.zeros((), dtype=torch.int64))

    def due(self, step: int) -> bool:
        """Return whether dead latents are resampled after `step` steps."""
        return step % self.every == 0 and step <= self.last

    @torch.no_grad()
    def count(self, fired: Tensor) -> None:
        """Count the resampled latents that fired, bool [d_sae], in one step."""
        self.revived += (self.waiting & fired).sum()
        self.waiting &= ~fired

    def counts(self) -> dict[str, float]:
        """Return how many latents were resampled so far, and how many of them fired again."""
        return {"resampled": self.resampled.item(), "revived": self.revived.item()}

    @torch.no_grad()
    def __call__(
        self, sae: SAE, x: Tensor, residual: Tensor, silent_for: Tensor, dead_after: int, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Change dead latents of `sae`; returns which, and their new values by parameter, latents
        first. Waits for the device.

        Args:
            x: what was read [batch, d_in].
            residual: target less the prediction [batch, d_out].
            silent_for: tokens since each latent fired [d_sae].
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        wide = torch.promote_types(x.dtype, torch.float32)
        found = []
        for number, group in enumerate(sae.groups()):
            age = silent_for[group]
            ours = x.split(sae.d_in, dim=1)[number] if sae.site.groups > 1 else x
            first = number * sae.d_out // sae.site.groups
            missed = residual[:, first:]
            order = age.argsort(descending=True, stable=True)[: int((age >= dead_after).sum())]
            tokens = drawn(missed.double().square().sum(1), len(order), generator)
            if len(tokens):
                dead = order[: len(tokens)].sort().values
                norms = sae.W_enc[:, group].to(wide).norm(dim=0)
                alive = norms[age < dead_after] if len(order) < len(age) else norms
                norm = self.ENCODER_NORM * alive.mean()
                found.append((dead + group.start, *directions(sae, ours, missed, tokens, norm)))
        if not found:
            return silent_for.new_zeros(0), {}
        latents, *values = (torch.cat(some) for some in zip(*found, strict=True))
        new = dict(zip(("W_enc", "b_enc", "W_dec"), values, strict=True))
        for name, own in sae.sparsity.extra_params().items():
            if own.per_latent and own.learns:
                new[name] = torch.full_like(new["b_enc"], own.start)
        for name, rows in new.items():
            write_rows(name, getattr(sae, name), latents, rows)
        sae.project()
        self.waiting[latents] = True
        self.resampled += len(latents)
        return latents, new


def drawn(squared_error: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Up to `most` tokens, no two the same, drawn in turn with probability proportional to the
    square of their squared error [batch]."""
    weights = squared_error.double().cpu().square()
    # The first of clocks that ring at these rates is each token in proportion to its rate.
    rings = torch.empty_like(weights).exponential_(generator=generator) / weights
    most = min(most, int((weights > 0).sum()))
    return rings.argsort()[:most].to(squared_error.device)


def directions(
    sae: SAE, x: Tensor, missed: Tensor, tokens: Tensor, norm: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder columns of norm `norm` [n, d_in], b_enc [n] and decoder rows [n, d_out] for latents
    that are to fire on `tokens`; `missed` [batch, width] is the last part of the residual."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if sae.site.predicts_input:
        reads = normalize((x[tokens] - sae.b_dec).to(wide))
        return norm * reads, norm.new_zeros(len(tokens)), reads
    centre = x.to(wide).mean(0)
    reads = norm * normalize(x[tokens].to(wide) - centre)
    writes = reads.new_zeros(len(tokens), sae.d_out)
    writes[:, -missed.shape[1] :] = normalize(missed[tokens].to(wide))
    return reads, -(centre @ reads.t()), writes


def write_rows(name: str, tensor: Tensor, latents: Tensor, rows: Tensor) -> None:
    """Replace what belongs to `latents` in a tensor like parameter `name` by rows [n, ...]."""
    by_latent = tensor.detach().t() if name == "W_enc" else tensor.detach()
    by_latent.index_copy_(0, latents, rows.to(by_latent))


def restart_rows(state: dict[str, Any], name: str, latents: Tensor, rows: Tensor) -> None:
    """In an optimiser's state of parameter `name`: moments of `latents` back to 0, copies of the
    parameter to rows [n, ...]."""
    for kind, tensor in state.items():
        if torch.is_tensor(tensor) and tensor.ndim:
            value = rows if kind in COPIES else torch.zeros_like(rows)
            write_rows(name, tensor, latents, value)
