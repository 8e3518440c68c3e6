"""The fraction of variance unexplained, as a loss."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm


@dataclass(frozen=True, kw_only=True)
class FVU(LossTerm):
    """sum |y - y_hat|^2 / sum |y - mean(y)|^2 over the batch: a squared error without a unit.

    Args:
        coefficient: Weight in the loss.
    """

    coefficient: float = 1.0

    def __call__(self, forward: ForwardOutput) -> Tensor:
        return forward.squared_error / forward.variance
