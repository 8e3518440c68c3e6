"""An average of the weights over the last steps."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.training.resample import write_rows
from sae.training.row_adam import normalize_rows_


class WeightAverage(nn.Module):
    """Exponential moving average of all that an SAE has learnt, thresholds included; fp32.

    After step t it is the mean of the weights after steps 1 to t, step s weighing decay^(t - s):
    what there was before the first step has no share.

    Args:
        sae: what is averaged.
        decay: above 0 and below 1; 0.999 looks back some 1,000 steps. Raises UserError for others.
    """

    def __init__(self, sae: SAE, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise UserError(f"model.ema={decay} must be above 0 and below 1, such as 0.999")
        self.decay = decay
        for name, tensor in sae.state_dict().items():
            wide = torch.promote_types(tensor.dtype, torch.float32)
            self.register_buffer(name, tensor.detach().to(wide, copy=True))
        self.register_buffer("share", torch.ones((), dtype=torch.float64), persistent=False)

    def set_share(self, steps: int) -> None:
        """What the coming step weighs, when `steps` are done."""
        self.share.fill_((1 - self.decay) / (1 - self.decay ** (steps + 1)))

    @torch.no_grad()
    def update(self, sae: SAE) -> None:
        """Take in the weights after a step."""
        for name, tensor in sae.state_dict().items():
            average = getattr(self, name)
            average.lerp_(tensor.to(average.dtype), self.share.to(average.dtype))

    @torch.no_grad()
    def restart(self, latents: Tensor, new: dict[str, Tensor]) -> None:
        """Forget what `latents` were before they were resampled."""
        for name, rows in new.items():
            write_rows(name, getattr(self, name), latents, rows)

    @torch.no_grad()
    def averaged(self, sae: SAE) -> SAE:
        """A copy of `sae` with average weights; means of rows of norm 1 are shorter, so rows of
        W_dec get their norm back where training holds it."""
        average = copy.deepcopy(sae)
        for name, tensor in average.state_dict().items():
            mean = getattr(self, name)
            tensor.copy_(
                normalize_rows_(mean.clone()) if name == "W_dec" and sae.unit_norm else mean
            )
        average.project()
        return average
