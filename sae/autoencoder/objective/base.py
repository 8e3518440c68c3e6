"""What every term of the objective is given and answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.autoencoder.family import Family

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE
    from sae_kernels.codes import Codes


@dataclass
class Forward:
    """One forward pass, as the terms of the objective see it.

    Args:
        sae: the autoencoder.
        x: what was read [batch, d_in].
        target: what is to be predicted [batch, d_out].
        codes: sparse codes of x.
        residual: target less the prediction [batch, d_out], a constant.
        squared_error: sum over the batch of |target - prediction|^2: a scalar, differentiable.
        variance: sum over the batch of |target - its batch mean|^2, a scalar.
        silent: latents that may be dead, int64 [n]; a list a few steps old.
        is_dead: bool [n], which of `silent` are dead now.
    """

    sae: SAE
    x: Tensor
    target: Tensor
    codes: Codes
    residual: Tensor
    squared_error: Tensor
    variance: Tensor
    silent: Tensor
    is_dead: Tensor

    @property
    def x_hat(self) -> Tensor:
        """The prediction [batch, d_out], a constant."""
        return self.target - self.residual


def spread(x: Tensor) -> Tensor:
    """sum |x - mean(x)|^2 over the rows of x [batch, width]: 0-d, at least fp32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # Norms of rows first: one norm of everything keeps few running sums, and is off by 1e-5.
    return torch.linalg.vector_norm(x - x.mean(0), dim=1, dtype=wide).square().sum()


class Term(Family, ABC, family="model.objective"):
    """One summand of the loss."""

    coefficient: float

    @abstractmethod
    def __call__(self, forward: Forward) -> Tensor:
        """The term before its coefficient: a scalar, differentiable in the parameters."""
