"""Unrolled: the encoder is a few iterations of sparse coding (Gregor & LeCun 2010, LISTA)."""

from dataclasses import dataclass

from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderWeights, ExtraParam, Sparsity
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.encode_unrolled import encode_unrolled


@dataclass(frozen=True, kw_only=True)
class Unrolled(Sparsity):
    """z_0 = relu(pre), pre = (x - b_dec) W_enc + b_enc; then each layer computes
    z <- relu(z + step * (pre - z D W_enc) - theta), so that what z explains is not counted twice.

    D [d_sae, d_in] reconstructs x from codes. It is W_dec if the SAE predicts x. Otherwise W_dec
    writes to another space, and D is the transpose of W_enc with each column divided by its squared
    norm. step and theta are learned, one of each per latent. Needs a penalty such as L1. A layer
    costs twice what a dense encoder does, and its backward pass as much again.

    Args:
        d_sae: Number of latents.
        layers: How many such layers follow z_0.
        tied: Whether all layers share step and theta; otherwise each learns its own.
        step: Initial value of the steps. Above 2 / |D W_enc|, which for random directions is about
            2 / (1 + sqrt(d_sae / d_in))^2, codes grow from layer to layer at the start.
        theta: Initial value of the thresholds.
    """

    d_sae: int
    layers: int = 2
    tied: bool = True
    step: float = 0.05
    theta: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise UserError(
                f"model.sae.layers={self.layers} unrolls nothing; give at least 1, or use ReLU"
            )
        if not self.step > 0:
            raise UserError(f"model.sae.step={self.step} must be positive")
        if not self.theta >= 0:
            raise UserError(f"model.sae.theta={self.theta} must not be negative")

    def _names(self, name: str) -> list[str]:
        """Return the name of a parameter in each layer."""
        return [name if self.tied else f"{name}_{layer}" for layer in range(1, self.layers + 1)]

    def extra_params(self) -> dict[str, ExtraParam]:
        steps = {name: ExtraParam(self.step, power=0) for name in self._names("step")}
        return steps | {name: ExtraParam(self.theta) for name in self._names("theta")}

    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        w = weights
        steps, thetas = ([w.extra[name] for name in self._names(n)] for n in ("step", "theta"))
        D = None if w.pre_bias is None else w.W_dec
        return encode_unrolled(
            x, w.W_enc, w.b_enc, D, steps, thetas, w.pre_bias, backend=backend
        )  # fmt: skip

    @property
    def unrolled_layers(self) -> int:
        return self.layers

    @property
    def needs_penalty(self) -> bool:
        return True
