"""Resampling: dead latents restart on tokens that the SAE reconstructs badly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae.autoencoder import SAE
from sae.errors import UserError

# Optimizer state that is a copy of the parameter: RowAdam's fp32 master, and the two iterates of
# schedule-free sign descent. All other state is moments.
PARAM_COPIES = ("master", "x", "z")


class Resampler(nn.Module):
    """Neuron resampling (Bricken et al. 2023, appendix), on the batch of the step.

    Every `every` steps each dead latent gets one token of the batch, drawn with probability
    proportional to the square of the token's squared error. The latent restarts from this token:

    - Its decoder row becomes the direction of x - b_dec, and its encoder column the same direction
      times ENCODER_NORM times the mean norm of the encoder columns of live latents. Its b_enc
      becomes 0, and its parameters of the sparsity rule get their start values.
    - If the SAE predicts something else than it reads, the encoder column has the direction of x
      minus the batch mean (b_enc subtracts this mean, as at the start of the run), and the decoder
      row that of the residual.
    - With groups of latents, only the inputs and outputs of the latent's group count.

    No token is drawn twice, because two latents that start alike would stay alike. If fewer tokens
    have an error than latents are dead, those that have been silent for longest are resampled and
    the others wait.

    Args:
        d_sae: Number of latents.
        every: Steps between two resamplings.
        last: Last step at which latents are resampled.
        seed: Seed of the draw, together with the number of the step.

    Raises:
        UserError: `every` is greater than `last`.
    """

    waiting: Tensor
    resampled: Tensor
    revived: Tensor

    ENCODER_NORM = 0.2

    def __init__(self, d_sae: int, *, every: int, last: float, seed: int = 0) -> None:
        super().__init__()
        if every > last:
            raise UserError(
                f"model.resample_every={every} never comes: no latent is resampled while the "
                f"learning rate falls, from step {last:.0f} on (model.optim.decay); lower it"
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
        """Resample dead latents of `sae` in place. This waits for the device.

        Args:
            sae: The SAE to change.
            x: Activations that were read [batch, d_in].
            residual: Target minus prediction [batch, d_out].
            silent_for: Tokens since each latent fired [d_sae].
            dead_after: Tokens without firing after which a latent is dead.
            step: Number of the step.

        Returns:
            Indices of the resampled latents [n], and their new values by the name of the parameter,
            each [n, ...].
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        wide = torch.promote_types(x.dtype, torch.float32)
        group_results = []
        for number, group in enumerate(sae.groups()):
            age = silent_for[group]
            group_x = x.split(sae.d_in, dim=1)[number] if sae.site.groups > 1 else x
            first = number * sae.d_out // sae.site.groups
            group_residual = residual[:, first:]
            order = age.argsort(descending=True, stable=True)[: int((age >= dead_after).sum())]
            tokens = sample_tokens(group_residual.double().square().sum(1), len(order), generator)
            if len(tokens):
                dead = order[: len(tokens)].sort().values
                norms = sae.W_enc[:, group].to(wide).norm(dim=0)
                alive = norms[age < dead_after] if len(order) < len(age) else norms
                norm = self.ENCODER_NORM * alive.mean()
                values = new_rows(sae, group_x, group_residual, tokens, norm)
                group_results.append((dead + group.start, *values))
        if not group_results:
            return silent_for.new_zeros(0), {}
        latents, W_enc, b_enc, W_dec = (torch.cat(v) for v in zip(*group_results, strict=True))
        new: dict[str, Tensor] = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec}
        for name, param in sae.sparsity.extra_params().items():
            if param.per_latent and param.learns:
                new[name] = torch.full_like(b_enc, param.start)
        for name, rows in new.items():
            write_rows(name, getattr(sae, name), latents, rows)
        sae.project()
        self.waiting[latents] = True
        self.resampled += len(latents)
        return latents, new


def sample_tokens(squared_error: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample tokens without replacement, weighted by the square of their squared error.

    Args:
        squared_error: Squared error of each token [batch].
        count: Number of tokens to sample; fewer are returned if fewer have an error.
        generator: A generator on the CPU.

    Returns:
        Indices of tokens, on the device of `squared_error`.
    """
    weights = squared_error.double().cpu().square()
    # The smallest of exponential variables with these rates is each token in proportion to its
    # rate, so their order is that of weighted draws without replacement.
    times = torch.empty_like(weights).exponential_(generator=generator) / weights
    count = min(count, int((weights > 0).sum()))
    return times.argsort()[:count].to(squared_error.device)


def new_rows(
    sae: SAE, x: Tensor, residual: Tensor, tokens: Tensor, norm: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return new weights for latents so that latent i fires on `tokens[i]`.

    Args:
        sae: The SAE to which the latents belong.
        x: Activations that the latents read [batch, d_in].
        residual: The last columns of target minus prediction, which the latents may write
            [batch, width].
        tokens: Index of the token of each latent [n].
        norm: Norm of the encoder columns, 0-d.

    Returns:
        Encoder columns [n, d_in], b_enc [n] and decoder rows [n, d_out].
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if sae.site.predicts_input:
        reads = normalize((x[tokens] - sae.b_dec).to(wide))
        return norm * reads, norm.new_zeros(len(tokens)), reads
    centre = x.to(wide).mean(0)
    reads = norm * normalize(x[tokens].to(wide) - centre)
    writes = reads.new_zeros(len(tokens), sae.d_out)
    writes[:, -residual.shape[1] :] = normalize(residual[tokens].to(wide))
    return reads, -(centre @ reads.t()), writes


def write_rows(name: str, tensor: Tensor, latents: Tensor, rows: Tensor) -> None:
    """Write rows [n, ...] of `latents` to `tensor`, which has the layout of parameter `name`."""
    by_latent = tensor.detach().t() if name == "W_enc" else tensor.detach()
    by_latent.index_copy_(0, latents, rows.to(by_latent))


def restart_rows(state: dict[str, Any], name: str, latents: Tensor, rows: Tensor) -> None:
    """Reset the optimizer state of `latents` for parameter `name`.

    Moments become 0, and copies of the parameter become `rows` [n, ...].
    """
    for kind, tensor in state.items():
        if torch.is_tensor(tensor) and tensor.ndim:
            value = rows if kind in PARAM_COPIES else torch.zeros_like(rows)
            write_rows(name, tensor, latents, value)
