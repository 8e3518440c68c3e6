"""What every sparsity rule answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from sae.autoencoder.family import Family

if TYPE_CHECKING:
    from sae.autoencoder.sae import SAE
    from sae_kernels.codes import Codes


class Sparsity(Family, ABC, family="model.sae"):
    """Which of the `d_sae` latents fire on an activation, and how strongly."""

    d_sae: int

    @abstractmethod
    def encode(self, x: Tensor, sae: SAE, *, backend: str = "auto") -> Codes:
        """Sparse codes of `x` [batch, d_in], differentiable in the parameters of `sae`."""

    @abstractmethod
    def fold(self, sae: SAE, scale: float) -> None:
        """Change `sae` in place so that raw activations give what `scale` times them gave.

        On return `sae.decode(sae.encode(x))` is `1/scale` times what it was for `scale * x`, the
        same latents fire, and the decoder rows keep their norm.
        """
