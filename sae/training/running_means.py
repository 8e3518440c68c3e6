"""Averages over the steps since the last log, kept on the device."""

from __future__ import annotations

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

    def read(self) -> dict[str, float]:
        """The sums so far, which start again at zero. Waits for the device."""
        sums = dict(zip(self.names, self.sums.tolist(), strict=True))
        self.sums.zero_()
        return sums
