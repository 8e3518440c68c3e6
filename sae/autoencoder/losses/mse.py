"""The squared error as most papers write it."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.losses.base import ForwardOutput, LossTerm


@dataclass(frozen=True, kw_only=True)
class MSE(LossTerm):
    """|y - y_hat|^2, summed over the width and averaged over the batch.

    Activations are scaled to a mean distance of sqrt(d_in) to their center, so it starts at about
    d_in.

    Args:
        coefficient: Weight in the loss.
    """

    coefficient: float = 1.0

    def __call__(self, forward: ForwardOutput) -> Tensor:
        return forward.squared_error / len(forward.x)
