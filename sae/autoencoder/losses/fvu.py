"""Fraction of variance unexplained."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm


@dataclass(frozen=True, kw_only=True)
class FVU(LossTerm):
    """sum |y - y_hat|^2 / sum |y - mean(y)|^2 over the batch: the squared error, free of scale."""

    coefficient: float = 1.0

    def __call__(self, forward: ForwardOutput) -> Tensor:
        return forward.squared_error / forward.variance
