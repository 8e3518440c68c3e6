"""Which latents are dead: counted here and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sae_kernels.codes import Codes


class DeadLatents(nn.Module):
    """Tokens since each latent last fired, and the list of those that no longer do.

    A latent is dead when it fired on none of the last `dead_after` tokens. The list that AuxK works
    on is drawn up every `refresh_steps` steps, because its length must be known to the host and
    asking the device waits for it; in between, `is_dead` drops from it whoever fired again.

    Args:
        d_sae: number of latents.
        dead_after: tokens without firing after which a latent is dead.
        refresh_steps: how old the list may get, in steps.
        most: the longest list; the latents silent for longest are on it. It is ascending.
    """

    def __init__(self, d_sae: int, *, dead_after: int, refresh_steps: int, most: int) -> None:
        super().__init__()
        self.dead_after, self.refresh_steps, self.most = dead_after, refresh_steps, most
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("silent", torch.zeros(0, dtype=torch.int64))

    def is_dead(self) -> Tensor:
        """Which of `silent` are dead now: bool, as long as `silent`."""
        return self.tokens_since_fired[self.silent] >= self.dead_after

    def dead_fraction(self) -> Tensor:
        """Share of all latents that are dead now: a scalar on the device."""
        return (self.tokens_since_fired >= self.dead_after).float().mean()

    @torch.no_grad()
    def count(self, *codes: Codes) -> Tensor:
        """Take note of who fired in the batches of one step: bool [d_sae], which is returned."""
        fired = torch.stack([some.fired() for some in codes]).any(0)
        self.tokens_since_fired += sum(some.batch for some in codes)
        self.tokens_since_fired.masked_fill_(fired, 0)
        return fired

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Draw up the list when it is due; `step` is the number of steps done. Then it waits for
        the device."""
        if step % self.refresh_steps:
            return
        silent = (self.tokens_since_fired >= self.dead_after).nonzero().squeeze(1)
        if len(silent) > self.most:
            age = self.tokens_since_fired[silent]
            oldest = age.argsort(descending=True, stable=True)[: self.most]
            silent = silent[oldest.sort().values]
        self.silent = silent

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        saved = state_dict.get(prefix + "silent")
        if saved is not None:  # its length varies, which nn.Module takes for another shape
            self.silent = torch.zeros_like(saved, device=self.silent.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
