"""Averages over the steps since the last log, kept on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RunningMeans(nn.Module):
    """Sums of named scalars; nothing is read from the device before `read`.

    It is part of the state, so a run that is resumed between two logs logs what it would have.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.register_buffer("sums", torch.zeros(len(names), dtype=torch.float64))

    @torch.no_grad()
    def add(self, **values: Tensor | float) -> None:
        assert tuple(values) == self.names
        row = [
            torch.as_tensor(value, device=self.sums.device).double() for value in values.values()
        ]
        self.sums += torch.stack(row)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        saved = state_dict.get(prefix + "sums")
        if saved is not None and len(saved) < len(self.names):
            # Written before the terms of the loss were logged apart: unknown until the next read.
            unknown = saved.new_full((len(self.names) - len(saved),), math.nan)
            state_dict[prefix + "sums"] = torch.cat([saved, unknown])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def read(self) -> dict[str, float]:
        """The sums so far, which start again at zero. Waits for the device."""
        sums = dict(zip(self.names, self.sums.tolist(), strict=True))
        self.sums.zero_()
        return sums
