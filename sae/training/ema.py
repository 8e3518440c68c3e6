"""Exponential moving average (EMA) of an SAE's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sae.autoencoder import SAE
from sae.errors import UserError
from sae.training.resample import write_rows
from sae.training.row_adam import normalize_rows_


class WeightAverage(nn.Module):
    """The exponential moving average, in fp32, of all parameters and buffers of an SAE.

    After step t it is the mean of the weights after steps 1 to t, where step s has the weight
    decay^(t - s). The weights before the first step do not count.

    Args:
        sae: The SAE to average.
        decay: Above 0 and below 1 (UserError otherwise); 0.999 averages over about 1,000 steps.
    """

    share: Tensor

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
        """Set the weight of the next step in the average, after `steps` steps."""
        self.share.fill_((1 - self.decay) / (1 - self.decay ** (steps + 1)))

    @torch.no_grad()
    def update(self, sae: SAE) -> None:
        """Add the weights after a step to the average."""
        for name, tensor in sae.state_dict().items():
            average = getattr(self, name)
            average.lerp_(tensor.to(average.dtype), self.share.to(average.dtype))

    @torch.no_grad()
    def restart(self, latents: Tensor, new: dict[str, Tensor]) -> None:
        """Replace the average of `latents`, which were resampled, by their new values."""
        for name, rows in new.items():
            write_rows(name, getattr(self, name), latents, rows)

    @torch.no_grad()
    def averaged(self, sae: SAE) -> SAE:
        """Return a copy of `sae` with the averaged weights.

        A mean of unit-norm rows is shorter than 1, so rows of W_dec are normalized again if
        training holds them at norm 1.
        """
        average = copy.deepcopy(sae)
        for name, tensor in average.state_dict().items():
            mean = getattr(self, name)
            tensor.copy_(
                normalize_rows_(mean.clone()) if name == "W_dec" and sae.unit_norm else mean
            )
        average.project()
        return average
